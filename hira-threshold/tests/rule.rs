//! The rule's limits, its counts and its written forms.

use hira_threshold::{ThresholdError, ThresholdRule};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const FIXED: ThresholdRule = ThresholdRule::Fixed { tau: 1.5 };
const TOP: ThresholdRule = ThresholdRule::TopK { k: 256 };
const MASS: ThresholdRule = ThresholdRule::Mass { mass: 0.99 };
const SHARE: ThresholdRule = ThresholdRule::Percentile { percent: 2.0 };
const ADAPTIVE: ThresholdRule = ThresholdRule::Adaptive { c: -0.5 };
const SAMPLE_TOP: ThresholdRule = ThresholdRule::SampleTopK { k: 64 };
const MEAN_MAX: ThresholdRule = ThresholdRule::SampleMeanMax { weight: 0.5 };
const BUDGET: ThresholdRule = ThresholdRule::Budget { percent: 2.5 };

/// Every sampled rule.
const SAMPLED: [ThresholdRule; 6] = [
    ADAPTIVE,
    ThresholdRule::SampleMax,
    SAMPLE_TOP,
    MEAN_MAX,
    ThresholdRule::SampleGap,
    BUDGET,
];

#[test]
fn tagged_form() {
    for (rule, json) in [
        (FIXED, r#"{"rule":"fixed","tau":1.5}"#),
        (TOP, r#"{"rule":"top_k","k":256}"#),
        (SHARE, r#"{"rule":"percentile","percent":2.0}"#),
        (MASS, r#"{"rule":"mass","mass":0.99}"#),
        (ADAPTIVE, r#"{"rule":"adaptive","c":-0.5}"#),
        (ThresholdRule::SampleMax, r#"{"rule":"sample_max"}"#),
        (SAMPLE_TOP, r#"{"rule":"sample_top_k","k":64}"#),
        (MEAN_MAX, r#"{"rule":"sample_mean_max","weight":0.5}"#),
        (ThresholdRule::SampleGap, r#"{"rule":"sample_gap"}"#),
        (BUDGET, r#"{"rule":"budget","percent":2.5}"#),
        (
            ThresholdRule::Fixed {
                tau: f32::NEG_INFINITY,
            },
            r#"{"rule":"fixed","tau":"-inf"}"#,
        ),
        (
            ThresholdRule::Fixed { tau: f32::INFINITY },
            r#"{"rule":"fixed","tau":"inf"}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&rule).unwrap(), json);
        assert_eq!(serde_json::from_str::<ThresholdRule>(json).unwrap(), rule);
    }
    let whole: ThresholdRule = serde_json::from_str(r#"{"rule":"fixed","tau":-3}"#).unwrap();
    assert_eq!(whole, ThresholdRule::Fixed { tau: -3.0 });
    let whole: ThresholdRule =
        serde_json::from_str(r#"{"rule":"percentile","percent":2}"#).unwrap();
    assert_eq!(whole, SHARE);
}

#[test]
fn tagged_form_refuses() {
    for json in [
        r#"{"rule":"top_k","k":256,"extra":1}"#,
        r#"{"rule":"fixed","tau":1.5,"k":2}"#,
        r#"{"rule":"top_k"}"#,
        r#"{"rule":"top-k","k":1}"#,
        r#"{"rule":"top_k","k":-1}"#,
        r#"{"rule":"fixed","tau":"many"}"#,
        r#"{"rule":"fixed","tau":1e300}"#,
        r#"{"rule":"fixed","tau":null}"#,
        r#"{"k":1}"#,
        r#"{"rule":"adaptive"}"#,
        r#"{"rule":"adaptive","percent":1}"#,
        r#"{"rule":"sample_max","k":1}"#,
        r#"{"rule":"sample_gap","weight":0.5}"#,
        r#"{"rule":"sample-max"}"#,
        r#"{"rule":"sample_top_k","k":1.5}"#,
        r#"{"rule":"budget"}"#,
    ] {
        assert!(
            serde_json::from_str::<ThresholdRule>(json).is_err(),
            "{json}"
        );
    }
}

#[test]
fn one_word_form() {
    for (rule, word) in [
        (FIXED, "fixed=1.5"),
        (TOP, "top-k=256"),
        (SHARE, "percentile=2"),
        (MASS, "mass=0.99"),
        (ADAPTIVE, "adaptive=-0.5"),
        (ThresholdRule::SampleMax, "sample-max"),
        (SAMPLE_TOP, "sample-top-k=64"),
        (MEAN_MAX, "sample-mean-max=0.5"),
        (ThresholdRule::SampleGap, "sample-gap"),
        (BUDGET, "budget=2.5"),
        (
            ThresholdRule::Fixed {
                tau: f32::NEG_INFINITY,
            },
            "fixed=-inf",
        ),
    ] {
        assert_eq!(rule.to_string(), word);
        assert_eq!(word.parse(), Ok(rule));
    }
    let refused = |word: &str| word.parse::<ThresholdRule>().unwrap_err();
    for unknown in ["", "best=3", "best", "=3", "sample_max", "Budget=2"] {
        assert_eq!(refused(unknown), ThresholdError::UnknownRule);
    }
    for (text, message) in [
        ("top-k", "top-k must be followed by = and a whole number"),
        (
            "sample-top-k=many",
            "sample-top-k must be followed by = and a whole number",
        ),
        ("adaptive", "adaptive must be followed by = and a number"),
        ("budget=", "budget must be followed by = and a number"),
        ("sample-max=1", "sample-max must be followed by nothing"),
        ("sample-gap=", "sample-gap must be followed by nothing"),
        ("sample-top-k=0", "k must be at least 1"),
        ("mass=0", "mass must be above 0 and at most 1, received 0"),
        ("adaptive=inf", "c must be finite, received inf"),
        (
            "sample-mean-max=1.25",
            "weight must be from 0 to 1, received 1.25",
        ),
        (
            "budget=0",
            "percent must be above 0 and at most 100, received 0",
        ),
    ] {
        assert_eq!(refused(text).to_string(), message);
    }
    assert_eq!(refused("top-k=0"), ThresholdError::ZeroK);
    assert_eq!(
        refused("top-k=1.5"),
        ThresholdError::Value {
            rule: "top-k",
            requirement: "= and a whole number"
        }
    );
    assert_eq!(
        refused("fixed="),
        ThresholdError::Value {
            rule: "fixed",
            requirement: "= and a number"
        }
    );
    assert_eq!(refused("fixed=NaN"), ThresholdError::TauNan);
    assert_eq!(
        refused("percentile=101"),
        ThresholdError::Percent { percent: 101.0 }
    );
}

#[test]
fn limits() {
    for rule in [
        FIXED,
        TOP,
        SHARE,
        MASS,
        ThresholdRule::Mass { mass: 1.0 },
        ThresholdRule::Mass {
            mass: f32::MIN_POSITIVE,
        },
        ThresholdRule::Percentile { percent: 100.0 },
        ThresholdRule::Budget { percent: 100.0 },
        ThresholdRule::Adaptive { c: f32::MIN },
        ThresholdRule::SampleMeanMax { weight: 0.0 },
        ThresholdRule::SampleMeanMax { weight: 1.0 },
    ]
    .into_iter()
    .chain(SAMPLED)
    {
        assert_eq!(rule.validate(), Ok(()));
    }
    assert_eq!(
        ThresholdRule::SampleTopK { k: 0 }.validate(),
        Err(ThresholdError::ZeroK)
    );
    for c in [f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(
            ThresholdRule::Adaptive { c }.validate(),
            Err(ThresholdError::Factor { c })
        );
    }
    for weight in [-0.1, 1.0f32.next_up(), f32::INFINITY] {
        assert_eq!(
            ThresholdRule::SampleMeanMax { weight }.validate(),
            Err(ThresholdError::Weight { weight })
        );
    }
    for mass in [0.0, -0.5, 1.0f32.next_up(), f32::INFINITY] {
        assert_eq!(
            ThresholdRule::Mass { mass }.validate(),
            Err(ThresholdError::Mass { mass })
        );
    }
    for rule in [
        ThresholdRule::Mass { mass: f32::NAN },
        ThresholdRule::Adaptive { c: f32::NAN },
        ThresholdRule::SampleMeanMax { weight: f32::NAN },
        ThresholdRule::Budget { percent: f32::NAN },
    ] {
        assert!(rule.validate().is_err());
    }
    assert_eq!(
        ThresholdRule::Fixed { tau: f32::NAN }.validate(),
        Err(ThresholdError::TauNan)
    );
    assert_eq!(
        ThresholdRule::TopK { k: 0 }.validate(),
        Err(ThresholdError::ZeroK)
    );
    for percent in [0.0, -0.0, -1.0, 100.00001, f32::INFINITY] {
        assert_eq!(
            ThresholdRule::Percentile { percent }.validate(),
            Err(ThresholdError::Percent { percent })
        );
        assert_eq!(
            ThresholdRule::Budget { percent }.validate(),
            Err(ThresholdError::Percent { percent })
        );
    }
    let error = ThresholdRule::Percentile { percent: f32::NAN }
        .validate()
        .unwrap_err();
    assert!(matches!(error, ThresholdError::Percent { .. }));
}

#[test]
fn counts_of_decimals() {
    let count = |percent, visible| {
        ThresholdRule::Percentile { percent }
            .count(visible)
            .unwrap()
    };
    assert_eq!(count(0.1, 1000), 1);
    assert_eq!(count(0.1, 1001), 2);
    assert_eq!(count(7.0, 100), 7);
    assert_eq!(count(12.15, 66_107), 8_033); // 8032.0005
    assert_eq!(count(33.3, 1000), 333);
    assert_eq!(count(12.5, 8), 1);
    assert_eq!(count(12.5, 9), 2);
    assert_eq!(count(1e-30, 5), 1);
    assert_eq!(count(50.0, 0), 0);
    assert_eq!(count(100.0, 12345), 12345);
    assert_eq!(count(50.0, (1 << 26) + 1), (1 << 25) + 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("regressions")))]

    #[test]
    fn percent_counts_are_the_ceiling(hundredths in 1u64..=10_000, visible in 0usize..200_000) {
        let rule = ThresholdRule::Percentile { percent: hundredths as f32 / 100.0 };
        let expected = (hundredths * visible as u64).div_ceil(10_000) as usize;
        prop_assert_eq!(rule.count(visible), Some(expected));
    }

    #[test]
    fn words_round_trip(
        tau in any::<f32>(),
        c in f32::MIN..=f32::MAX,
        k in 1usize..,
        percent in 0.001f32..=100.0,
        weight in 0.0f32..=1.0,
    ) {
        prop_assume!(!tau.is_nan());
        for rule in [
            ThresholdRule::Fixed { tau },
            ThresholdRule::TopK { k },
            ThresholdRule::Percentile { percent },
            ThresholdRule::Adaptive { c },
            ThresholdRule::SampleMax,
            ThresholdRule::SampleTopK { k },
            ThresholdRule::SampleMeanMax { weight },
            ThresholdRule::SampleGap,
            ThresholdRule::Budget { percent },
        ] {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            let json = serde_json::to_string(&rule).unwrap();
            prop_assert_eq!(serde_json::from_str::<ThresholdRule>(&json).unwrap(), rule);
        }
    }
}
