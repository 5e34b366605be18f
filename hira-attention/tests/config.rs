//! Configurations in three formats: defaults, unknown keys, impossible values.

use std::error::Error;

use hira_attention::{
    CacheShape, ConfigError, HiraAttentionConfig, PlanPolicy, Precision, ThresholdStrategy,
};
use hira_index::{
    BuilderConfig, DynamicUpdater, IncrementalUpdater, KMeansBuilder, KMeansStart, KdAxis,
    KdTreeBuilder, ProductConfig, RandomizedBuilder, RebuildTrigger, RebuildUpdater, UpdateConfig,
};
use hira_memory::{MemoryPolicy, Part};
use hira_search::{Plan, PlanChoice};
use hira_threshold::ThresholdRule;

/// The error and everything that caused it, as a program prints it.
fn chain(error: &ConfigError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[test]
fn defaults_are_the_documented_ones_in_every_format() {
    let config = HiraAttentionConfig::new();
    assert_eq!(config.num_levels, 3);
    assert_eq!(config.branching_factor, 32);
    assert_eq!(config.threshold_strategy, ThresholdStrategy::TopK);
    assert_eq!(config.top_k, 256);
    assert_eq!(HiraAttentionConfig::from_toml("").unwrap(), config);
    assert_eq!(HiraAttentionConfig::from_json("{}").unwrap(), config);
    assert_eq!(HiraAttentionConfig::from_yaml("{}").unwrap(), config);
}

#[test]
fn block_means_are_kept_where_a_sparse_step_uses_them() {
    let shape = CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads: 1,
        head_dim: 8,
        value_dim: 8,
        max_len: 64,
    };
    for (text, block_keys) in [
        ("", 128),
        ("tail_block = 32", 32),
        ("tail_compensation = false", 0),
        ("num_levels = 0", 0),
    ] {
        let config = HiraAttentionConfig::from_toml(text).unwrap();
        let cache = config.init_cache(shape).unwrap();
        let head = &cache.layer(0).unwrap().heads()[0];
        assert_eq!(head.means().block_keys(), block_keys, "{text}");
    }
    for tail_block in [0, 8, 40, 1040] {
        let text = format!("tail_block = {tail_block}");
        let refused = HiraAttentionConfig::from_toml(&text).unwrap_err();
        assert!(
            chain(&refused).contains("tail_block"),
            "{}",
            chain(&refused)
        );
    }
}

#[test]
fn a_precision_is_chosen_by_its_name_and_reaches_the_cache() {
    assert_eq!(HiraAttentionConfig::new().precision, Precision::F32);
    let shape = CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads: 1,
        head_dim: 8,
        value_dim: 8,
        max_len: 512,
    };
    for precision in Precision::ALL {
        let text = format!("precision = \"{precision}\"");
        let config = HiraAttentionConfig::from_toml(&text).unwrap();
        assert_eq!(config, HiraAttentionConfig::new().with_precision(precision));
        // without means of values, which are counted among them
        let config = config.with_tail_compensation(false);
        let mut cache = config.init_cache(shape).unwrap();
        let rows = [0.1; 8 * 512];
        cache.append(0, &rows, &rows).unwrap();
        let memory = cache.memory();
        let values = memory.of(Part::Values) / precision.bytes();
        assert!((8 * 512..=8 * 544).contains(&values), "{values}");
        let head = &cache.layer(0).unwrap().heads()[0];
        assert_eq!(head.index().key(7).unwrap().value(3), precision.round(0.1));
    }
    let refused = HiraAttentionConfig::from_toml("precision = \"fp16\"").unwrap_err();
    assert!(chain(&refused).contains("fp16"), "{}", chain(&refused));
}

#[test]
fn every_format_reads_what_it_wrote() {
    let config = HiraAttentionConfig {
        memory_policy: MemoryPolicy::Hybrid { num_fast_levels: 1 },
        memory_budget: Some(1 << 30),
        device_budget: Some(1 << 20),
        max_candidates: Some(99),
        plan: PlanPolicy::Sparse,
        scale: Some(0.25),
        precision: Precision::Bf16,
        ..HiraAttentionConfig::new().with_threshold(f32::NEG_INFINITY)
    };
    let text = toml::to_string(&config).unwrap();
    assert_eq!(HiraAttentionConfig::from_toml(&text).unwrap(), config);
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(HiraAttentionConfig::from_json(&text).unwrap(), config);
    let text = serde_norway::to_string(&config).unwrap();
    assert_eq!(HiraAttentionConfig::from_yaml(&text).unwrap(), config);
}

#[test]
fn every_rule_is_reached_by_its_keys_and_by_itself() {
    for (keys, rule) in [
        ("", ThresholdRule::TopK { k: 256 }),
        (
            "threshold_strategy = \"fixed\"\nthreshold = 1.5",
            ThresholdRule::Fixed { tau: 1.5 },
        ),
        (
            "threshold_strategy = \"percentile\"\npercentile = 3.5",
            ThresholdRule::Percentile { percent: 3.5 },
        ),
        (
            "threshold_strategy = \"mass\"\nmass = 0.95",
            ThresholdRule::Mass { mass: 0.95 },
        ),
        (
            "threshold_strategy = \"adaptive\"\nadaptive_c = -1.5",
            ThresholdRule::Adaptive { c: -1.5 },
        ),
        (
            "threshold_strategy = \"sample_max\"",
            ThresholdRule::SampleMax,
        ),
        (
            "threshold_strategy = \"sample_top_k\"\ntop_k = 77",
            ThresholdRule::SampleTopK { k: 77 },
        ),
        (
            "threshold_strategy = \"sample_mean_max\"\nsample_weight = 0.25",
            ThresholdRule::SampleMeanMax { weight: 0.25 },
        ),
        (
            "threshold_strategy = \"sample_gap\"",
            ThresholdRule::SampleGap,
        ),
        (
            "threshold_strategy = \"budget\"\nbudget_percent = 0.5",
            ThresholdRule::Budget { percent: 0.5 },
        ),
    ] {
        let config = HiraAttentionConfig::from_toml(keys).unwrap();
        assert_eq!(config.rule().unwrap(), rule);
        assert_eq!(HiraAttentionConfig::new().with_rule(rule), config);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(HiraAttentionConfig::from_json(&text).unwrap(), config);
    }
}

#[test]
fn builders_and_updaters_are_written_by_name_or_with_settings() {
    let growth = RebuildTrigger::Growth { ratio: 0.2 };
    let seeded = KMeansBuilder {
        start: KMeansStart::Random,
        seed: 3,
        ..KMeansBuilder::default()
    };
    let principal = KdTreeBuilder {
        axis: KdAxis::Principal,
    };
    let builders = [
        ("\"k_means\"", BuilderConfig::default()),
        (
            "{ k_means = { start = \"random\", seed = 3 } }",
            BuilderConfig::KMeans(seeded),
        ),
        (
            "\"randomized\"",
            BuilderConfig::Randomized(RandomizedBuilder::default()),
        ),
        (
            "{ kd_tree = { axis = \"principal\" } }",
            BuilderConfig::KdTree(principal),
        ),
        ("\"chunk\"", BuilderConfig::Chunk),
    ];
    let updates = [
        ("\"seal\"", UpdateConfig::Seal),
        (
            "\"rebuild\"",
            UpdateConfig::Rebuild(RebuildUpdater::default()),
        ),
        (
            "{ rebuild = { trigger = { growth = { ratio = 0.2 } } } }",
            UpdateConfig::Rebuild(RebuildUpdater { trigger: growth }),
        ),
        (
            "{ rebuild = { trigger = \"always\" } }",
            UpdateConfig::Rebuild(RebuildUpdater {
                trigger: RebuildTrigger::Always,
            }),
        ),
        (
            "{ incremental = { every = 64 } }",
            UpdateConfig::Incremental(IncrementalUpdater {
                every: 64,
                ..IncrementalUpdater::default()
            }),
        ),
        (
            "\"dynamic\"",
            UpdateConfig::Dynamic(DynamicUpdater::default()),
        ),
    ];
    for ((builder_text, builder), (update_text, update)) in
        builders.into_iter().cycle().zip(updates)
    {
        let text = format!(
            "builder = {builder_text}\nupdate_strategy = {update_text}\nbackground_builds = true"
        );
        let config = HiraAttentionConfig::from_toml(&text).unwrap();
        assert_eq!(config.builder, builder);
        assert_eq!(config.update_strategy, update);
        assert!(config.background_builds);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(HiraAttentionConfig::from_toml(&text).unwrap(), config);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(HiraAttentionConfig::from_json(&text).unwrap(), config);
        let text = serde_norway::to_string(&config).unwrap();
        assert_eq!(HiraAttentionConfig::from_yaml(&text).unwrap(), config);
    }
    let yaml = "builder: !k_means\n  nredo: 2\nupdate_strategy: incremental";
    let config = HiraAttentionConfig::from_yaml(yaml).unwrap();
    assert!(matches!(
        config.builder,
        BuilderConfig::KMeans(KMeansBuilder { nredo: 2, .. })
    ));
    let json = r#"{"builder": {"k_means": {"nredo": 2}}, "update_strategy": "incremental"}"#;
    assert_eq!(HiraAttentionConfig::from_json(json).unwrap(), config);
}

#[test]
fn infinite_thresholds_can_be_written_in_every_format() {
    for config in [
        HiraAttentionConfig::from_toml("threshold_strategy = \"fixed\"\nthreshold = -inf"),
        HiraAttentionConfig::from_json(r#"{"threshold_strategy":"fixed","threshold":"-inf"}"#),
        HiraAttentionConfig::from_yaml("threshold_strategy: fixed\nthreshold: -.inf"),
    ] {
        assert_eq!(config.unwrap().threshold, Some(f32::NEG_INFINITY));
    }
}

#[test]
fn unknown_keys_are_named() {
    for error in [
        HiraAttentionConfig::from_toml("num_level = 3"),
        HiraAttentionConfig::from_json(r#"{"num_level": 3}"#),
        HiraAttentionConfig::from_yaml("num_level: 3"),
    ] {
        let text = chain(&error.unwrap_err());
        assert!(text.contains("num_level`"), "{text}");
    }
}

#[test]
fn impossible_values_are_named() {
    for (key, text) in [
        ("top_k", "top_k = 0"),
        ("branching_factor", "branching_factor = 1"),
        ("num_levels", "num_levels = 9"),
        ("percentile", "percentile = 0"),
        ("percentile", "percentile = 101.0"),
        ("percentile", "percentile = nan"),
        ("budget_percent", "budget_percent = 0.0"),
        ("budget_percent", "budget_percent = 100.5"),
        ("mass", "mass = 0.0"),
        ("mass", "mass = 1.5"),
        ("mass", "mass = nan"),
        ("scale", "scale = 0.0\nthreshold_strategy = \"mass\""),
        ("adaptive_c", "adaptive_c = inf"),
        ("adaptive_c", "adaptive_c = nan"),
        ("sample_weight", "sample_weight = 1.5"),
        ("sample_weight", "sample_weight = nan"),
        ("sample_size", "sample_size = 65537"),
        (
            "sample_size",
            "sample_size = 0\nthreshold_strategy = \"sample_max\"",
        ),
        ("threshold_strategy", "threshold_strategy = \"sample-max\""),
        ("threshold", "threshold = nan"),
        ("threshold", "threshold = inf"),
        ("threshold", "threshold_strategy = \"fixed\""),
        ("threshold_strategy", "threshold_strategy = \"topk\""),
        ("scale", "scale = -1.0"),
        ("scale", "scale = inf"),
        ("max_dropped_mass", "max_dropped_mass = 0.0"),
        ("max_dropped_mass", "max_dropped_mass = nan"),
        ("segment_len", "segment_len = 100"),
        ("segment_len", "segment_len = 0"),
        ("max_candidates", "max_candidates = 0"),
        ("max_decode_tokens", "max_decode_tokens = 0"),
        ("update_strategy", "update_strategy = \"never\""),
        ("builder", "builder = \"ball_tree\""),
        ("nredo", "builder = { k_means = { nredo = 0 } }"),
        ("tolerance", "builder = { k_means = { tolerance = -1.0 } }"),
        ("iterations", "builder = { k_means = { iterations = 3 } }"),
        ("every", "update_strategy = { incremental = { every = 0 } }"),
        ("base", "update_strategy = { dynamic = { base = 0 } }"),
        (
            "ratio",
            "update_strategy = { rebuild = { trigger = { growth = { ratio = 0.0 } } } }",
        ),
        ("background_builds", "background_builds = 1"),
        ("memory_policy", "memory_policy = \"gpu\""),
        (
            "target_usage",
            "memory_policy = { adaptive = { target_usage = 2.0 } }",
        ),
        ("kernel", "kernel = \"sse2\""),
        ("plan", "plan = \"fast\""),
    ] {
        let text = chain(&HiraAttentionConfig::from_toml(text).unwrap_err());
        assert!(text.contains(key), "{key}: {text}");
    }
}

#[test]
fn files_are_read_by_their_extension() {
    let folder = std::env::temp_dir().join(format!("hira-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in [
        ("a.toml", "top_k = 7"),
        ("a.json", r#"{"top_k": 7}"#),
        ("a.yaml", "top_k: 7"),
        ("a.yml", "top_k: 7"),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        assert_eq!(HiraAttentionConfig::from_file(&path).unwrap().top_k, 7);
    }
    let missing = HiraAttentionConfig::from_file(folder.join("b.toml")).unwrap_err();
    assert!(matches!(missing, ConfigError::Io { .. }), "{missing}");
    let format = HiraAttentionConfig::from_file(folder.join("a.ini")).unwrap_err();
    assert!(format.to_string().contains("a.ini"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn product_codes_and_search_plans_are_reached() {
    let text = "product = { subvectors = 4, bits = 8 }\nsearch_plan = { force = \"product\" }";
    let config = HiraAttentionConfig::from_toml(text).unwrap();
    let product = ProductConfig::default().with_subvectors(4).with_bits(8);
    assert_eq!(config.product, Some(product));
    assert_eq!(config.search_plan, PlanChoice::Force(Plan::Product));
    let text = toml::to_string(&config).unwrap();
    assert_eq!(HiraAttentionConfig::from_toml(&text).unwrap(), config);
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(HiraAttentionConfig::from_json(&text).unwrap(), config);
    let text = serde_norway::to_string(&config).unwrap();
    assert_eq!(HiraAttentionConfig::from_yaml(&text).unwrap(), config);
    let refused = HiraAttentionConfig::from_toml("product = { bits = 5 }").unwrap_err();
    assert!(refused.to_string().contains("product.bits"), "{refused}");
}
