//! Whatever is done to an index, every plan finds what brute force finds, and its invariants hold after every step.

mod common;
#[path = "common/history.rs"]
mod history;

use std::path::Path;

use history::source::{self, Bytes, Limits};
use history::{
    BRANCHING, CONTENTS, DIMS, Flaw, History, MIN_COARSE_LENS, Op, Query, Report, SEGMENT_LENS,
    Search, Shape, Step, VARIANTS, run,
};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;

/// Values of one batch, keys times dimension: keeps the largest case within a second of debug time.
const BATCH_VALUES: u32 = 60_000;

fn shapes() -> impl Strategy<Value = Shape> {
    let layout = (
        select(DIMS.to_vec()),
        0u8..5,
        select(BRANCHING.to_vec()),
        select(SEGMENT_LENS.to_vec()),
        select(MIN_COARSE_LENS.to_vec()),
    );
    let rest = (0..VARIANTS.len() as u8, 0u8..3, 0..CONTENTS, any::<u8>());
    (layout, rest).prop_map(
        |(
            (dim, levels, branching, segment_len, min_coarse_len),
            (variant, kernel, content, seed),
        )| Shape {
            dim,
            levels,
            branching,
            segment_len,
            min_coarse_len,
            variant,
            kernel,
            content,
            seed,
        },
    )
}

fn searches() -> impl Strategy<Value = Search> {
    let query = prop_oneof![
        3 => (0..CONTENTS).prop_map(Query::Content),
        1 => Just(Query::Stored),
        1 => Just(Query::Opposite),
        1 => Just(Query::Zero),
    ];
    let keys = (
        0u8..6,
        query,
        prop_oneof![2 => Just(1000u16), 1 => 0u16..1000],
        prop_oneof![2 => Just(0u8), 1 => any::<u8>()],
        prop_oneof![2 => Just(0u16), 1 => 0u16..1000],
    );
    let rule = (any::<u8>(), 0u16..=1000, prop::option::of(0u16..300));
    (keys, rule, 0u8..4, any::<bool>(), any::<u8>()).prop_map(
        |(
            (queries, query, visible, hidden, front),
            (rule, amount, limit),
            scale,
            parallel,
            seed,
        )| {
            Search {
                queries,
                query,
                visible,
                hidden,
                front,
                rule,
                amount,
                limit,
                scale,
                parallel,
                seed,
            }
        },
    )
}

/// Steps for a segment length: batches of a few keys, of odd sizes, and of several segments.
fn steps(shape: &Shape) -> impl Strategy<Value = Step> + use<> {
    let most = BATCH_VALUES / u32::from(shape.dim);
    let segment_len = shape.segment_len;
    let sizes = prop_oneof![
        1 => Just(0u32),
        2 => Just(1u32),
        3 => 2u32..400,
        2 => (0u32..4, 0u32..40).prop_map(move |(segments, rest)| segments * segment_len + rest),
    ];
    let append = (sizes, 0u8..4).prop_map(move |(rows, seed)| Op::Append {
        rows: rows.min(most),
        seed,
    });
    let flaws = select(vec![Flaw::Nan, Flaw::Infinity, Flaw::Norm, Flaw::Ragged]);
    let refused = (0u8..20, flaws, any::<u8>()).prop_map(|(rows, flaw, seed)| Op::Refused {
        rows,
        flaw,
        seed,
    });
    let op = prop_oneof![
        6 => append,
        1 => refused,
        2 => (0u16..=1000, 0u8..32).prop_map(|(keep, less)| Op::Truncate { keep, less }),
        2 => (0u16..=1000).prop_map(|before| Op::Evict { before }),
        1 => Just(Op::Clear),
        2 => Just(Op::Seal),
        1 => Just(Op::Fork),
        6 => searches().prop_map(Op::Search),
    ];
    (any::<u8>(), op).prop_map(|(on, op)| Step { on, op })
}

fn histories() -> impl Strategy<Value = History> {
    shapes().prop_flat_map(|shape| {
        prop::collection::vec(steps(&shape), 1..24).prop_map(move |steps| History {
            shape: shape.clone(),
            steps,
        })
    })
}

fn settings() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        // Ten seconds in the dev profile; `PROPTEST_CASES` still scales it.
        cases: 4 * default.cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/history.regressions",
        ))),
        ..default
    }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn every_history_agrees_with_brute_force(history in histories()) {
        if let Err(failure) = run(&history, 1, &mut Report::default()) {
            return Err(TestCaseError::fail(failure.to_string()));
        }
    }
}

/// The inputs that the fuzzer starts from.
#[test]
fn the_corpus_agrees_with_brute_force() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut report = Report::default();
    let mut inputs = 0;
    for entry in folder.read_dir().expect("the corpus is committed") {
        let file = entry.expect("a readable entry").path();
        let bytes = std::fs::read(&file).expect("a readable input");
        let history = source::history(&mut Bytes(&bytes), Limits::FUZZ);
        let ran = run(&history, 1, &mut report);
        ran.unwrap_or_else(|failure| panic!("{}: {failure}\n{history:#?}", file.display()));
        inputs += 1;
    }
    assert!(inputs >= 5, "only {inputs} inputs");
    // A corpus that decodes to nothing would pass everything.
    assert!(report.checks > 100_000, "only {} checks", report.checks);
    for plan in ["Auto", "Force(Dense)", "Force(SketchScan)", "Force(Tree)"] {
        assert!(
            report.totals.contains_key(&("plan", plan.to_string())),
            "{plan}"
        );
    }
}

#[test]
fn every_string_of_bytes_is_a_history() {
    for bytes in [&[][..], &[255; 300], &[0; 300], &[7]] {
        let history = source::history(&mut Bytes(bytes), Limits::FUZZ);
        let ran = run(&history, 1, &mut Report::default());
        ran.unwrap_or_else(|failure| panic!("{failure}\n{history:#?}"));
    }
}

/// Every key equal: positions alone decide, whatever the clusters make of them.
#[test]
fn equal_keys_go_by_position() {
    let shape = Shape {
        dim: 17,
        levels: 3,
        branching: 4,
        segment_len: 256,
        min_coarse_len: 0,
        variant: 0,
        kernel: 2,
        content: CONTENTS - 2,
        seed: 1,
    };
    let append = |rows| Op::Append { rows, seed: 0 };
    let search = |rule, amount, query| {
        Op::Search(Search {
            queries: 2,
            query,
            visible: 1000,
            hidden: 3,
            front: 100,
            rule,
            amount,
            limit: None,
            scale: 2,
            parallel: false,
            seed: 0,
        })
    };
    let mut ops = vec![append(1), search(0, 16, Query::Stored), append(999)];
    for query in [
        Query::Stored,
        Query::Opposite,
        Query::Zero,
        Query::Content(0),
    ] {
        for rule in 0..history::oracle::RULES.len() as u8 {
            ops.push(search(rule, 500, query));
        }
    }
    let steps = ops.into_iter().map(|op| Step { on: 0, op }).collect();
    let mut report = Report::default();
    run(&History { shape, steps }, 1, &mut report).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(
        report.searches,
        common::PLANS.len() as u64 * (1 + 4 * history::oracle::RULES.len() as u64)
    );
}
