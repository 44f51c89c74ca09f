//! Apple Silicon: GPU and processor share one memory.
//!
//! How much of it a model may take: `0.75 * RAM - 4.5 GB` (Metal's working-set limit, less
//! what the system and the apps of a used Mac need), which fits all rows of the server
//! guide's table.

use unamesh_proto::wire::Gpu;

const GIB: u64 = 1 << 30;

/// The part of `ram` bytes that models may take.
pub const fn usable(ram: u64) -> u64 {
    (ram / 4 * 3).saturating_sub(GIB * 9 / 2)
}

/// The GPU of a Mac with this processor and memory.
pub fn gpu(cpu: &str, ram_total: u64, ram_free: u64) -> Gpu {
    let usable = usable(ram_total);
    Gpu {
        name: format!("{cpu} GPU"),
        memory_total: usable,
        memory_free: usable.min(ram_free),
        ..Gpu::default()
    }
}
