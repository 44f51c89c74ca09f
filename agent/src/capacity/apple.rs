//! Apple Silicon: GPU and processor share one memory, of which
//! [`unamesh_proto::vram::usable_unified`] says how much a model may take.

use unamesh_proto::vram::usable_unified;
use unamesh_proto::wire::Gpu;

/// The GPU of a Mac with this processor and memory.
pub fn gpu(cpu: &str, ram_total: u64, ram_free: u64) -> Gpu {
    let usable = usable_unified(ram_total);
    Gpu {
        name: format!("{cpu} GPU"),
        memory_total: usable,
        memory_free: usable.min(ram_free),
        ..Gpu::default()
    }
}
