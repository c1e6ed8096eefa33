//! `score = "<expression>"`: several values become one by a formula (L1), and the lowest wins (L7).
//!
//! The language is CEL (<https://cel.dev>), with its extension for mathematics (`math.greatest`, `math.least`,
//! `math.abs`, …). Names are those of the service's status objects, with `_` for `-`. All numbers are taken for floating point:
//! CEL itself knows no `clients * 2` for a `clients` that is none. What could run long, or is no number, is refused
//! when the configuration is read: macros over lists, maps, text.

use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{Expr, IdedExpr, LiteralValue, SourceInfo};
use cel::{Context, Env, Value, extensions};

use super::policy::NoScore;

/// Bytes of an expression.
const LONGEST: usize = 1024;

/// CEL's own functions and those of mathematics.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut environment = Env::stdlib();
    // Refused only where one of its functions is there already; then CEL's own are what there is.
    let _ = environment.add_extension(extensions::math);
    Arc::new(environment)
});

/// An expression, ready to be evaluated.
#[derive(Clone)]
pub struct Score {
    text: Arc<str>,
    expression: Arc<IdedExpr>,
    /// The names in it, and which of the service's status objects each is.
    names: Arc<[(Arc<str>, usize)]>,
}

impl PartialEq for Score {
    /// The same text about the same status objects.
    fn eq(&self, other: &Score) -> bool {
        self.text == other.text && self.names == other.names
    }
}

impl fmt::Debug for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Score").field(&self.text).finish()
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found}: wanted {wanted}")]
pub struct Wrong {
    /// Byte of the expression.
    pub at: usize,
    /// What was found.
    pub found: String,
    /// What would be right.
    pub wanted: String,
}

impl Score {
    /// Compiles `text` for a service with these status objects.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &str, statuses: &[&str]) -> Result<Score, Wrong> {
        let wrong =
            |at, found: String, wanted: &str| Wrong { at, found, wanted: wanted.to_owned() };
        if text.len() > LONGEST {
            let found = format!("the expression has {} bytes", text.len());
            return Err(wrong(0, found, "at most 1024"));
        }
        if let Some((at, odd)) = text.char_indices().find(|(_, c)| !c.is_ascii()) {
            return Err(wrong(at, format!("{odd:?} in an expression"), "ASCII"));
        }
        let program = ENVIRONMENT.compile(text).map_err(|errors| {
            let first = errors.errors.into_iter().min_by_key(|error| error.pos);
            let (at, found) = first.map_or((0, String::new()), |error| {
                (offset(text, error.pos), in_words(&error.msg))
            });
            wrong(at, found, "an expression such as \"clients * 2 + pending\"")
        })?;
        let mut expression = program.expression().clone();
        let names = statuses.iter().map(|name| Arc::from(name.replace('-', "_"))).collect();
        let mut check = Check { names, used: Vec::new(), places: program.source_info() };
        check.walk(&mut expression)?;
        check.used.sort_unstable();
        check.used.dedup();
        let names = check.used.iter().map(|at| (check.names[*at].clone(), *at)).collect();
        let score = Score { text: text.into(), expression: Arc::new(expression), names };
        // Types are found wrong only by evaluation; a value that is not finite may be right for other values.
        if let Err(found) = score.evaluate(|_| Some(1.0))
            && !matches!(found, Fault::NotFinite)
        {
            return Err(wrong(0, format!("the expression is {found}"), "a number"));
        }
        Ok(score)
    }

    /// Places of the status objects that it names.
    pub fn statuses(&self) -> impl Iterator<Item = usize> {
        self.names.iter().map(|(_, at)| *at)
    }

    /// Its value for the values of the service's status objects, in their order. Finite.
    ///
    /// # Errors
    /// A value that it names is missing, or what comes out is no finite number.
    pub fn value(&self, values: &[Option<f64>]) -> Result<f64, NoScore> {
        self.evaluate(|at| values.get(at).copied().flatten()).map_err(|fault| match fault {
            Fault::Missing(name) => NoScore::NoValue(name.to_string()),
            other => NoScore::Expression(other.to_string()),
        })
    }

    fn evaluate(&self, value: impl Fn(usize) -> Option<f64>) -> Result<f64, Fault> {
        let mut context = Context::with_env(ENVIRONMENT.clone());
        for (name, at) in self.names.iter() {
            let value = value(*at).ok_or_else(|| Fault::Missing(name.clone()))?;
            context.add_variable_from_value(&**name, value);
        }
        match Value::resolve(&self.expression, &context) {
            Ok(Value::Float(number)) if number.is_finite() => Ok(number),
            Ok(Value::Float(_)) => Err(Fault::NotFinite),
            // `size`, for one, yields these.
            Ok(Value::Int(number)) => Ok(number as f64),
            Ok(Value::UInt(number)) => Ok(number as f64),
            Ok(Value::Bool(_)) => Err(Fault::Wrong("true or false, no number".to_owned())),
            Ok(_) => Err(Fault::Wrong("no number".to_owned())),
            Err(error) => Err(Fault::Wrong(format!("no number: {error}"))),
        }
    }
}

/// Why an expression has no value.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("without {0}")]
    Missing(Arc<str>),
    #[error("no finite number")]
    NotFinite,
    #[error("{0}")]
    Wrong(String),
}

/// Goes through an expression once.
struct Check<'a> {
    /// Of all status objects.
    names: Vec<Arc<str>>,
    /// Those that were met.
    used: Vec<usize>,
    places: &'a SourceInfo,
}

impl Check<'_> {
    /// Names are known, numbers floating point, and nothing is there that is not meant for a score.
    fn walk(&mut self, expression: &mut IdedExpr) -> Result<(), Wrong> {
        let id = expression.id;
        match &mut expression.expr {
            Expr::Literal(literal) => self.literal(id, literal),
            Expr::Ident(name) => match self.names.iter().position(|of| **of == **name) {
                Some(at) => {
                    self.used.push(at);
                    Ok(())
                }
                None => {
                    let found = format!("no status object is called {name:?}");
                    let wanted = match &self.names[..] {
                        [] => "the service has none with a name".to_owned(),
                        names => format!("one of {}", names.join(", ")),
                    };
                    Err(self.wrong(id, found, wanted))
                }
            },
            Expr::Call(call) => {
                if let Some(target) = &mut call.target {
                    // `math.sqrt(x)` is the function `sqrt` of `math`.
                    let is_math = matches!(&target.expr, Expr::Ident(name) if name == "math");
                    if !is_math {
                        self.walk(target)?;
                    }
                }
                call.args.iter_mut().try_for_each(|argument| self.walk(argument))
            }
            // `math.greatest(a, b, c)` has one.
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.walk(element)),
            _ => {
                let found = "this is not for scores";
                Err(self.wrong(
                    id,
                    found,
                    "numbers, names of status objects, operators and functions",
                ))
            }
        }
    }

    fn literal(&self, id: u64, literal: &mut LiteralValue) -> Result<(), Wrong> {
        let number = match literal {
            LiteralValue::Int(number) => *number.inner() as f64,
            LiteralValue::UInt(number) => *number.inner() as f64,
            LiteralValue::Double(_) | LiteralValue::Boolean(_) => return Ok(()),
            _ => {
                return Err(self.wrong(
                    id,
                    "this is no number",
                    "numbers and names of status objects",
                ));
            }
        };
        *literal = LiteralValue::Double(number.into());
        Ok(())
    }

    fn wrong(&self, id: u64, found: impl Into<String>, wanted: impl Into<String>) -> Wrong {
        let at = self.places.offset_for(id).map_or(0, |(start, _)| start as usize);
        Wrong { at, found: found.into(), wanted: wanted.into() }
    }
}

/// The byte of `text` at a line and column, both from 1.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let line = usize::try_from(line - 1).unwrap_or(0);
    let before: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    (before + usize::try_from(column - 1).unwrap_or(0)).min(text.len())
}

/// What the parser found, without the list of all that it would have taken.
fn in_words(message: &str) -> String {
    let message = message.strip_prefix("Syntax error: ").unwrap_or(message);
    let message = message.split(" expecting ").next().unwrap_or(message);
    let message = message.replace("'<EOF>'", "the end");
    message.replace("mismatched input", "found").replace("extraneous input", "found")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const STATUSES: [&str; 3] = ["clients", "queue-length", "rtt"];

    fn value(text: &str, values: [f64; 3]) -> Result<f64, NoScore> {
        Score::parse(text, &STATUSES).unwrap().value(&values.map(Some))
    }

    #[test]
    fn numbers_are_numbers_with_and_without_a_point() {
        for (text, wanted) in [
            ("clients * 2 + rtt", 13.5),
            ("clients*2.0+rtt", 13.5),
            ("-clients", -3.0),
            ("rtt > 5 ? clients + 100 : clients", 103.0),
            ("rtt > 5.0 && clients < 3 ? 1 : 2", 2.0),
            ("queue_length / 4u", 2.5),
            ("math.greatest(clients, rtt, 4)", 7.5),
            ("math.least(clients, 2)", 2.0),
            ("math.sqrt(clients + 1) * math.abs(-1)", 2.0),
            ("7", 7.0),
        ] {
            assert_eq!(value(text, [3.0, 10.0, 7.5]), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn only_the_values_that_are_named_are_needed() {
        let score = Score::parse("clients + rtt", &STATUSES).unwrap();
        assert_eq!(score.statuses().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(score.value(&[Some(1.0), None, Some(2.0)]), Ok(3.0));
        let missing = NoScore::NoValue("rtt".to_owned());
        assert_eq!(score.value(&[Some(1.0), Some(2.0), None]), Err(missing));
        assert!(matches!(score.value(&[]), Err(NoScore::NoValue(_))));
    }

    #[test]
    fn what_is_not_finite_is_no_score() {
        for text in ["1 / (clients - 3)", "(clients - 3) / (clients - 3)", "rtt * 1e308"] {
            let error = value(text, [3.0, 10.0, 7.5]).unwrap_err();
            assert_eq!(error.to_string(), "the score is no finite number", "{text}");
        }
    }

    #[test]
    fn mistakes_have_their_place() {
        for (text, at, found) in [
            ("clients + nope", 10, "no status object is called \"nope\""),
            ("clients +", 9, "found the end"),
            ("clients +\n  pending", 12, "no status object is called \"pending\""),
            ("clients clients", 8, "found 'clients'"),
            ("", 0, "found the end"),
            ("clients + \"3\"", 10, "this is no number"),
            ("[1, 2].map(x, x)", 10, "this is not for scores"),
            ("clients > 1", 0, "the expression is true or false, no number"),
            ("clients + größe", 12, "'ö' in an expression"),
            ("math", 0, "no status object is called \"math\""),
            ("queue-length", 0, "no status object is called \"queue\""),
        ] {
            let wrong = Score::parse(text, &STATUSES).unwrap_err();
            assert_eq!((wrong.at, &*wrong.found), (at, found), "{text}");
        }
        let wrong = Score::parse("clients ? 1 : 2", &STATUSES).unwrap_err();
        assert!(wrong.found.starts_with("the expression is no number"), "{wrong}");
        assert!(Score::parse("greatest(clients, 1)", &STATUSES).is_err());
        assert!(Score::parse(&"1+".repeat(600), &STATUSES).is_err());
        assert!(Score::parse(&"(".repeat(1000), &STATUSES).is_err());
        assert!(
            Score::parse(&format!("{}1{}", "(".repeat(500), ")".repeat(500)), &STATUSES).is_err()
        );
    }

    #[test]
    fn two_scores_are_the_same_if_they_say_the_same_of_the_same() {
        let parse = |text, statuses: &[&str]| Score::parse(text, statuses).unwrap();
        assert_eq!(parse("clients", &["clients", "rtt"]), parse("clients", &["clients"]));
        assert_ne!(parse("clients", &["rtt", "clients"]), parse("clients", &["clients"]));
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in "[ -~\\n]{0,60}") {
            let _ = Score::parse(&text, &STATUSES);
        }

        #[test]
        fn nothing_that_looks_like_an_expression_does_harm(
            words in prop::collection::vec(prop::sample::select(vec![
                "clients", "rtt", "queue_length", "math", ".", "greatest", "(", ")", ",", "+", "-", "*", "/", "%", "?",
                ":", "&&", "||", "!", "<", "==", "1", "0", "2.5", "1e308", "9223372036854775807", "18446744073709551615u",
                "[", "]", "{", "}", "'a'", "b'a'", "null", "true", "in", "has", "all", "size", "int", "string", "timestamp",
            ]), 0..14),
            values in prop::array::uniform3(prop::num::f64::NORMAL),
        ) {
            if let Ok(score) = Score::parse(&words.join(" "), &STATUSES)
                && let Ok(value) = score.value(&values.map(Some))
            {
                prop_assert!(value.is_finite());
            }
        }
    }
}
