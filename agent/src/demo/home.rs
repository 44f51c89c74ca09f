//! The directory of a demo: a subdirectory for each member, with its state, configuration, log.

use super::DemoError;
use rand::Rng;
use std::fs::DirBuilder;
use std::path::{Path, PathBuf};

/// The directory; removed when this is dropped, unless it is kept.
pub struct Home {
    path: PathBuf,
    kept: bool,
}

impl Home {
    /// A fresh one below the system's directory for temporary files, open to this user alone.
    pub fn create() -> Result<Home, DemoError> {
        let name = format!("unamesh-demo-{:08x}", rand::rng().random::<u32>());
        let path = std::env::temp_dir().join(name);
        make(&path)?;
        Ok(Home { path, kept: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it there.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// A subdirectory for the member `name`.
    pub fn member(&self, name: &str) -> Result<PathBuf, DemoError> {
        let dir = self.path.join(name);
        make(&dir)?;
        Ok(dir)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.kept {
            // It lies among temporary files; whoever cleans those up takes the rest.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn make(path: &Path) -> Result<(), DemoError> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|error| DemoError::File {
        path: path.to_owned(),
        error,
    })
}
