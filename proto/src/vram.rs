//! Whether a model fits into a machine's memory.
//!
//! What a loaded language model takes is its file, the KV cache of its context at 16 bits
//! (keys and values: `2 * layers * kv_heads * head_dim * 2` bytes a token), and what the
//! engine adds: buffers of ~0.3 GB and ~4 % of the file. The rule for two models on one card
//! works on ranges, since what they take varies with context and load: **yes** if both fit at
//! their most, **tight** if they fit at their least, else **no**. Sizes are decimal gigabytes,
//! as on data sheets.

/// Bytes of a gigabyte as data sheets count it.
pub const GB: f64 = 1e9;
/// What an engine takes beside weights and cache, in gigabytes.
const ENGINE_GB: f64 = 0.3;
/// What it takes in proportion to the weights.
const ENGINE_SHARE: f64 = 0.04;
/// Of unified memory, the part that macOS lets the GPU have...
const UNIFIED_SHARE: f64 = 0.75;
/// ...less what system and apps need, in gigabytes.
const UNIFIED_RESERVE_GB: f64 = 4.5;

/// The dimensions of a model that its KV cache depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Transformer layers.
    pub layers: u32,
    /// Key/value heads (fewer than attention heads under grouped-query attention).
    pub kv_heads: u32,
    /// Values of one head.
    pub head_dim: u32,
}

impl Shape {
    /// Bytes of KV cache for each token of context, at 16 bits a value.
    pub const fn kv_bytes_per_token(self) -> u64 {
        // Shapes come out of model files: saturate instead of trusting them.
        4u64.saturating_mul(self.layers as u64)
            .saturating_mul(self.kv_heads as u64)
            .saturating_mul(self.head_dim as u64)
    }
}

/// Bytes of memory that a model with weights of `file` bytes takes at `context` tokens.
pub fn needed(file: u64, shape: Shape, context: u32) -> u64 {
    let cache = shape.kv_bytes_per_token() as f64 * f64::from(context);
    let all = file as f64 * (1.0 + ENGINE_SHARE) + cache + ENGINE_GB * GB;
    // `as` saturates; a hostile size gives a number that fits nowhere, never a wrap.
    all as u64
}

/// As [`needed`] where the shape is unknown: the cache of a model of this size at `context`
/// tokens, taken from the models that homes run (128 KiB a token at 4-9 GB, 256 at 20 GB).
pub fn needed_by_size(file: u64, context: u32) -> u64 {
    let per_token = if file > 12_000_000_000 {
        256 << 10
    } else {
        128 << 10
    };
    let all = file as f64 * (1.0 + ENGINE_SHARE)
        + f64::from(per_token) * f64::from(context)
        + ENGINE_GB * GB;
    all as u64
}

/// Bytes of unified memory (Apple Silicon) of `ram` bytes that models can use.
pub fn usable_unified(ram: u64) -> u64 {
    (UNIFIED_SHARE * ram as f64 - UNIFIED_RESERVE_GB * GB).max(0.0) as u64
}

/// What a model takes, at its least and at its most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// With a small context, idle.
    pub low: u64,
    /// With its whole context, busy.
    pub high: u64,
}

impl Range {
    /// A range in gigabytes.
    pub fn gb(low: f64, high: f64) -> Self {
        Range {
            low: (low * GB) as u64,
            high: (high * GB) as u64,
        }
    }
}

/// Whether models fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Not even at their least.
    No,
    /// At their least, not at their most.
    Tight,
    /// At their most.
    Yes,
}

/// Whether all of `models` fit into `memory` bytes at once.
pub fn fit(models: &[Range], memory: u64) -> Fit {
    let sum = |of: fn(&Range) -> u64| models.iter().map(of).fold(0u64, u64::saturating_add);
    if sum(|m| m.high) <= memory {
        Fit::Yes
    } else if sum(|m| m.low) <= memory {
        Fit::Tight
    } else {
        Fit::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shape(layers: u32, kv_heads: u32, head_dim: u32) -> Shape {
        Shape {
            layers,
            kv_heads,
            head_dim,
        }
    }

    /// Name, file in GB, shape, the guide's range in GB.
    const MODELS: [(&str, f64, Shape, f64, f64); 5] = [
        ("llama3.2:3b", 2.0, shape(28, 8, 128), 2.8, 3.2),
        ("mistral:7b", 4.4, shape(32, 8, 128), 5.0, 6.0),
        ("qwen2.5:7b", 4.5, shape(28, 4, 128), 5.0, 6.0),
        ("qwen2.5:14b", 9.0, shape(48, 8, 128), 10.3, 11.3),
        ("qwen2.5:32b", 19.9, shape(64, 8, 128), 22.0, 24.0),
    ];

    #[test]
    fn reproduces_the_guide_s_memory_figures() {
        for (name, file, shape, low, high) in MODELS {
            let gb = needed((file * GB) as u64, shape, 4096) as f64 / GB;
            assert!((low - 0.1..=high).contains(&gb), "{name}: {gb:.2} GB");
        }
        let mistral = needed(4_400_000_000, shape(32, 8, 128), 4096) as f64 / GB;
        assert!((mistral - 5.41).abs() < 0.01, "{mistral}");
    }

    #[test]
    fn reproduces_the_guide_s_card_matrix() {
        let (mistral, tts) = (Range::gb(5.0, 6.0), Range::gb(2.0, 3.0));
        for (card, gb, both) in [
            ("RTX 3060 8GB", 8, Fit::Tight),
            ("RTX 3060 12GB", 12, Fit::Yes),
            ("RTX 3070", 8, Fit::Tight),
            ("RTX 3080", 10, Fit::Yes),
            ("RTX 3090", 24, Fit::Yes),
            ("RTX 4060", 8, Fit::Tight),
            ("RTX 4060 Ti 16GB", 16, Fit::Yes),
            ("RTX 4070", 12, Fit::Yes),
            ("RTX 4080", 16, Fit::Yes),
            ("RTX 5090", 32, Fit::Yes),
            ("a 6 GB card", 6, Fit::No),
        ] {
            assert_eq!(fit(&[mistral, tts], gb * 1_000_000_000), both, "{card}");
        }
        // "qwen2.5:32b (tight)" on the 4090, comfortable on the 5090.
        let big = Range::gb(22.0, 24.0);
        assert_eq!(fit(&[big, tts], 24_000_000_000), Fit::Tight);
        assert_eq!(fit(&[big, tts], 32_000_000_000), Fit::Yes);
    }

    #[test]
    fn reproduces_the_guide_s_apple_rows() {
        let need = |name: &str| match name {
            "mistral:7b" => 6.0,
            "qwen2.5:14b" => 11.0,
            "qwen2.5:32b" => 24.0,
            _ => 48.0,
        };
        let larger = [
            ("mistral:7b", "qwen2.5:14b"),
            ("qwen2.5:14b", "qwen2.5:32b"),
            ("qwen2.5:32b", "70b"),
        ];
        for (chip, ram, most) in [
            ("M1", 16u64, "mistral:7b"),
            ("M1 Max", 64, "qwen2.5:32b"),
            ("M3 Max", 128, "70b"),
            ("M4", 32, "qwen2.5:14b"),
            ("M4 Max", 128, "70b"),
        ] {
            let usable = usable_unified(ram * 1_000_000_000) as f64 / GB;
            assert!(need(most) <= usable, "{chip}: {most} in {usable:.1} GB");
            if let Some((_, next)) = larger.iter().find(|(m, _)| *m == most) {
                assert!(
                    need(next) + 3.0 > usable,
                    "{chip}: {next} in {usable:.1} GB"
                );
            }
        }
        assert_eq!(usable_unified(1_000_000_000), 0);
    }

    #[test]
    fn hostile_sizes_saturate() {
        let huge = shape(u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(needed(u64::MAX, huge, u32::MAX), u64::MAX);
        let all = [Range {
            low: u64::MAX,
            high: u64::MAX,
        }; 3];
        assert_eq!(fit(&all, u64::MAX - 1), Fit::No);
    }
}
