//! The work of an evaluation on one model, piece by piece.

use std::time::Instant;

use hira_attention::{HiraAttentionConfig, HiraBackend};

use super::record::STRETCH;
use super::{DenseAnswer, EvalError, EvalRule, Journal, Reading, Record, TextRecord, Window};
use crate::llama::Llama;

/// What to evaluate.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// How the model's positions are stretched, for the records: `own` if they are not.
    pub positions: String,
    /// The rules to read with; dense attention is always among them.
    pub rules: Vec<EvalRule>,
    /// Tokens of a window: the longest context.
    pub len: usize,
    /// Windows of the text, one after the other; 0 to decode only.
    pub windows: usize,
    /// The first position of a query that counts; before it attention is dense.
    pub start: usize,
    /// Of the queries that count, every so many-th is also held against dense attention in f64, in every layer; 0 for none.
    pub measured: usize,
    /// The rules to decode with, of Hira's.
    pub decoding: Vec<EvalRule>,
    /// Tokens to decode, after as many of the text as fill a window with them.
    pub decoded: usize,
    /// Everything of Hira's configuration but the rule.
    pub base: HiraAttentionConfig,
}

/// What is happening, for a display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of work begins.
    Begin(String),
    /// So many tokens were processed.
    Tokens(usize),
}

impl Evaluation {
    /// Checks that contexts, start and text fit together; `contexts` are those that will be reported.
    ///
    /// # Errors
    ///
    /// [`EvalError::Plan`] or [`EvalError::Text`] that names the number.
    pub fn check(&self, contexts: &[usize], tokens: usize) -> Result<(), EvalError> {
        let refuse = |requirement, received| {
            Err(EvalError::Plan {
                requirement,
                received,
            })
        };
        for &context in contexts {
            if !context.is_multiple_of(2 * STRETCH) || context == 0 {
                return refuse("a context must be a multiple of 512 tokens", context);
            }
            if self.start > context / 2 {
                return refuse("the start must be at most half of each context", self.start);
            }
        }
        if !self.start.is_multiple_of(STRETCH) {
            return refuse("the start must be a multiple of 256", self.start);
        }
        if self.decoded >= self.len.max(1) {
            return refuse(
                "decoded tokens must be fewer than those of a window",
                self.decoded,
            );
        }
        match self.windows.saturating_mul(self.len) {
            needed if needed >= tokens => Err(EvalError::Text {
                len: needed,
                tokens,
            }),
            _ => Ok(()),
        }
    }

    /// Tokens that a model will process for what the journal does not have.
    pub fn tokens_left(&self, journal: &Journal<Record>) -> usize {
        let texts = (0..self.windows).map(|window| match self.pending(journal, window) {
            pending if pending.is_empty() => 0,
            // dense attention too, if only to compare with
            pending => {
                let dense = !pending.contains(&&EvalRule::Dense);
                self.len * (pending.len() + usize::from(dense))
            }
        });
        let prompt = self.len - self.decoded;
        let decoding = match self.undecoded(journal).len() {
            0 => 0,
            rules => prompt + self.decoded + 2 * self.decoded * rules,
        };
        texts.sum::<usize>() + decoding
    }

    /// Rules whose record of a window is not there, dense attention first.
    fn pending(&self, journal: &Journal<Record>, window: usize) -> Vec<&EvalRule> {
        let others = self.rules.iter().filter(|rule| **rule != EvalRule::Dense);
        let all = std::iter::once(&EvalRule::Dense).chain(others);
        all.filter(|rule| {
            let name = rule.to_string();
            !journal.has(|one| one.is_text(&self.positions, &name, window, self.len))
        })
        .collect()
    }

    fn undecoded(&self, journal: &Journal<Record>) -> Vec<&EvalRule> {
        let prompt = self.len - self.decoded;
        let rules = self.decoding.iter().filter(|rule| {
            let name = rule.to_string();
            self.decoded > 0
                && !journal.has(|one| one.is_decoding(&self.positions, &name, prompt, self.decoded))
        });
        rules.collect()
    }

    /// Does what the journal does not have, and writes each piece to it when it is done. The model is left with another attention.
    ///
    /// # Errors
    ///
    /// If the model refuses something, or the journal cannot be written.
    pub fn run<B: HiraBackend>(
        &self,
        model: &mut Llama<B>,
        text: &[u32],
        journal: &mut Journal<Record>,
        device: &B::Device,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<(), EvalError> {
        for window in 0..self.windows {
            self.read_window(model, text, window, journal, device, on_event)?;
        }
        self.decode(model, text, journal, device, on_event)
    }

    fn read_window<B: HiraBackend>(
        &self,
        model: &mut Llama<B>,
        text: &[u32],
        window: usize,
        journal: &mut Journal<Record>,
        device: &B::Device,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<(), EvalError> {
        let pending = self.pending(journal, window);
        if pending.is_empty() {
            return Ok(());
        }
        let first = window * self.len;
        let ids = Window {
            ids: &text[first..=first + self.len],
            start: self.start,
        };
        let mut read = |model: &mut Llama<B>, rule: &EvalRule| {
            on_event(Event::Begin(format!("{rule}, window {window}")));
            let begin = Instant::now();
            let mut progress = |tokens| on_event(Event::Tokens(tokens));
            let measured = self.measured;
            let reading = ids.read(model, rule, &self.base, measured, device, &mut progress)?;
            Ok::<_, EvalError>((reading, begin.elapsed().as_secs_f64()))
        };
        let record = |rule: &EvalRule, stretches, reading: Reading, seconds| {
            Record::Text(TextRecord {
                positions: self.positions.clone(),
                rule: rule.to_string(),
                window,
                len: self.len,
                stretches,
                start: self.start,
                layers: reading.layers,
                recalls: reading.recalls,
                seconds,
            })
        };
        let (dense, seconds) = read(model, &EvalRule::Dense)?;
        if pending.contains(&&EvalRule::Dense) {
            let stretches = ids.judge(model, &dense.states, &dense.states, device)?;
            journal.add(record(&EvalRule::Dense, stretches, dense.clone(), seconds))?;
        }
        for rule in pending {
            if *rule != EvalRule::Dense {
                let (reading, seconds) = read(model, rule)?;
                let stretches = ids.judge(model, &dense.states, &reading.states, device)?;
                journal.add(record(rule, stretches, reading, seconds))?;
            }
        }
        Ok(())
    }

    fn decode<B: HiraBackend>(
        &self,
        model: &mut Llama<B>,
        text: &[u32],
        journal: &mut Journal<Record>,
        device: &B::Device,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<(), EvalError> {
        let pending = self.undecoded(journal);
        if pending.is_empty() {
            return Ok(());
        }
        let prompt = &text[..self.len - self.decoded];
        on_event(Event::Begin("decoding, dense".to_owned()));
        let mut progress = |tokens| on_event(Event::Tokens(tokens));
        let (steps, base) = (self.decoded, &self.base);
        let dense = DenseAnswer::new(model, prompt, steps, base, device, &mut progress)?;
        for rule in pending {
            on_event(Event::Begin(format!("decoding, {rule}")));
            let mut progress = |tokens| on_event(Event::Tokens(tokens));
            let mut record = dense.compare(model, rule, base, device, &mut progress)?;
            record.positions.clone_from(&self.positions);
            journal.add(Record::Decoding(record))?;
        }
        Ok(())
    }
}
