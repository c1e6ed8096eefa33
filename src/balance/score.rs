//! `score = "<expression>"`: several values become one by a formula (L1), and the lowest wins (L7).
//!
//! The language is the arithmetic and logic of CEL (<https://cel.dev>), over floating-point numbers alone:
//!
//! ```text
//! score      = or [ "?" or ":" score ]
//! or         = and { "||" and }
//! and        = relation { "&&" relation }
//! relation   = sum { ( "<" | "<=" | ">" | ">=" | "==" | "!=" ) sum }
//! sum        = product { ( "+" | "-" ) product }
//! product    = unary { ( "*" | "/" ) unary }
//! unary      = { "-" } primary | { "!" } primary
//! primary    = number | "true" | "false" | name | function "(" score { "," score } ")" | "(" score ")"
//! ```
//!
//! Names are those of the service's status objects, with `_` for `-`. Integers are numbers as well: CEL itself knows no
//! `clients * 2` for a `clients` that is none. Whether something is a number or a condition is known when it is read, so
//! that evaluation finds nothing wrong but values: it allocates nothing and ends.

use std::fmt;
use std::sync::Arc;

use super::policy::NoScore;

/// Bytes of an expression: so its depth is bounded.
const LONGEST: usize = 1024;
/// Brackets, conditions and signs within each other.
const DEEPEST: usize = 32;

/// An expression, ready to be evaluated.
#[derive(Clone)]
pub struct Score {
    text: Arc<str>,
    number: Arc<Number>,
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
    /// Reads `text` for a service with these status objects.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &str, statuses: &[&str]) -> Result<Score, Wrong> {
        if text.len() > LONGEST {
            let found = format!("the expression has {} bytes", text.len());
            return Err(Wrong { at: 0, found, wanted: format!("at most {LONGEST}") });
        }
        let statuses = statuses.iter().map(|name| name.replace('-', "_").into()).collect();
        let mut parser = Parser { text, at: 0, depth: 0, statuses, used: Vec::new() };
        let term = parser.score()?;
        parser.skip_space();
        if parser.at < text.len() {
            return Err(parser.unexpected("an operator, or the end"));
        }
        let number = term.number()?;
        parser.used.sort_unstable();
        parser.used.dedup();
        let names = parser.used.iter().map(|at| (parser.statuses[*at].clone(), *at)).collect();
        Ok(Score { text: text.into(), number: Arc::new(number), names })
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
        let value = |at: usize| values.get(at).copied().flatten();
        if let Some((name, _)) = self.names.iter().find(|(_, at)| value(*at).is_none()) {
            return Err(NoScore::NoValue(name.to_string()));
        }
        let number = self.number.value(values);
        if number.is_finite() {
            Ok(number)
        } else {
            Err(NoScore::Expression("no finite number".to_owned()))
        }
    }
}

type One = fn(f64) -> f64;
type Two = fn(f64, f64) -> f64;
type Compare = fn(&f64, &f64) -> bool;

#[derive(Debug)]
enum Number {
    Constant(f64),
    Status(usize),
    Negative(Box<Number>),
    Two(Two, Box<(Number, Number)>),
    One(One, Box<Number>),
    Choice(Box<(Condition, Number, Number)>),
}

impl Number {
    fn value(&self, values: &[Option<f64>]) -> f64 {
        match self {
            Number::Constant(number) => *number,
            // Named values are there: it was looked before.
            Number::Status(at) => values.get(*at).copied().flatten().unwrap_or(f64::NAN),
            Number::Negative(number) => -number.value(values),
            Number::One(function, number) => function(number.value(values)),
            Number::Two(function, both) => function(both.0.value(values), both.1.value(values)),
            Number::Choice(choice) if choice.0.holds(values) => choice.1.value(values),
            Number::Choice(choice) => choice.2.value(values),
        }
    }
}

#[derive(Debug)]
enum Condition {
    Constant(bool),
    Compare(Compare, Box<(Number, Number)>),
    Not(Box<Condition>),
    Both(Box<(Condition, Condition)>),
    Either(Box<(Condition, Condition)>),
    Same(Box<(Condition, Condition)>),
    Choice(Box<(Condition, Condition, Condition)>),
}

impl Condition {
    fn holds(&self, values: &[Option<f64>]) -> bool {
        match self {
            Condition::Constant(answer) => *answer,
            Condition::Compare(compare, both) => {
                compare(&both.0.value(values), &both.1.value(values))
            }
            Condition::Not(condition) => !condition.holds(values),
            Condition::Both(both) => both.0.holds(values) && both.1.holds(values),
            Condition::Either(either) => either.0.holds(values) || either.1.holds(values),
            Condition::Same(both) => both.0.holds(values) == both.1.holds(values),
            Condition::Choice(choice) if choice.0.holds(values) => choice.1.holds(values),
            Condition::Choice(choice) => choice.2.holds(values),
        }
    }
}

/// What was read, and where it begins.
struct Term {
    at: usize,
    kind: Kind,
}

enum Kind {
    Number(Number),
    Condition(Condition),
}

impl Term {
    fn number(self) -> Result<Number, Wrong> {
        match self.kind {
            Kind::Number(number) => Ok(number),
            Kind::Condition(_) => Err(self.wrong("this is true or false", "a number")),
        }
    }

    fn condition(self) -> Result<Condition, Wrong> {
        match self.kind {
            Kind::Condition(condition) => Ok(condition),
            Kind::Number(_) => {
                Err(self.wrong("this is a number", "something that is true or false"))
            }
        }
    }

    fn wrong(&self, found: &str, wanted: &str) -> Wrong {
        Wrong { at: self.at, found: found.to_owned(), wanted: wanted.to_owned() }
    }
}

/// CEL's functions of one number (its extension for mathematics, and its conversion).
const ONE: [(&str, One); 7] = [
    ("math.abs", f64::abs),
    ("math.ceil", f64::ceil),
    ("math.floor", f64::floor),
    ("math.round", f64::round),
    ("math.sqrt", f64::sqrt),
    ("math.trunc", f64::trunc),
    ("double", |number| number),
];
/// Its functions of one number and more.
const MORE: [(&str, Two); 2] = [("math.greatest", f64::max), ("math.least", f64::min)];

const WANTED: &str = "a number, the name of a status object, a function or `(`";

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    /// Names of all status objects.
    statuses: Vec<Arc<str>>,
    /// Those that were met.
    used: Vec<usize>,
}

impl<'a> Parser<'a> {
    fn score(&mut self) -> Result<Term, Wrong> {
        self.deeper()?;
        let term = self.or()?;
        let term = if self.take("?") {
            let at = term.at;
            let condition = term.condition()?;
            let first = self.or()?;
            if !self.take(":") {
                return Err(self.unexpected("`:` and what holds otherwise"));
            }
            let second = self.score()?;
            let kind = match first.kind {
                Kind::Number(first) => {
                    Kind::Number(Number::Choice(Box::new((condition, first, second.number()?))))
                }
                Kind::Condition(first) => {
                    let second = second.condition()?;
                    Kind::Condition(Condition::Choice(Box::new((condition, first, second))))
                }
            };
            Term { at, kind }
        } else {
            term
        };
        self.depth -= 1;
        Ok(term)
    }

    fn or(&mut self) -> Result<Term, Wrong> {
        let mut term = self.and()?;
        while self.take("||") {
            let at = term.at;
            let both = Box::new((term.condition()?, self.and()?.condition()?));
            term = Term { at, kind: Kind::Condition(Condition::Either(both)) };
        }
        Ok(term)
    }

    fn and(&mut self) -> Result<Term, Wrong> {
        let mut term = self.relation()?;
        while self.take("&&") {
            let at = term.at;
            let both = Box::new((term.condition()?, self.relation()?.condition()?));
            term = Term { at, kind: Kind::Condition(Condition::Both(both)) };
        }
        Ok(term)
    }

    fn relation(&mut self) -> Result<Term, Wrong> {
        /// Those that begin like others stand before them.
        const COMPARISONS: [(&str, Compare); 6] = [
            ("<=", f64::le),
            (">=", f64::ge),
            ("==", f64::eq),
            ("!=", f64::ne),
            ("<", f64::lt),
            (">", f64::gt),
        ];
        let mut term = self.sum()?;
        while let Some((sign, compare)) = COMPARISONS.into_iter().find(|(sign, _)| self.take(sign))
        {
            let (at, second) = (term.at, self.sum()?);
            let condition = match term.kind {
                Kind::Number(first) => {
                    Condition::Compare(compare, Box::new((first, second.number()?)))
                }
                Kind::Condition(first) if matches!(sign, "==" | "!=") => {
                    let same = Condition::Same(Box::new((first, second.condition()?)));
                    if sign == "==" { same } else { Condition::Not(Box::new(same)) }
                }
                Kind::Condition(_) => return Err(term.wrong("this is true or false", "a number")),
            };
            term = Term { at, kind: Kind::Condition(condition) };
        }
        Ok(term)
    }

    fn sum(&mut self) -> Result<Term, Wrong> {
        self.chain(&[("+", |a, b| a + b), ("-", |a, b| a - b)], Self::product)
    }

    fn product(&mut self) -> Result<Term, Wrong> {
        self.chain(&[("*", |a, b| a * b), ("/", |a, b| a / b)], Self::unary)
    }

    fn chain(
        &mut self,
        operators: &[(&str, Two)],
        part: fn(&mut Self) -> Result<Term, Wrong>,
    ) -> Result<Term, Wrong> {
        let mut term = part(self)?;
        while let Some((_, operator)) = operators.iter().find(|(sign, _)| self.take(sign)) {
            let at = term.at;
            let both = Box::new((term.number()?, part(self)?.number()?));
            term = Term { at, kind: Kind::Number(Number::Two(*operator, both)) };
        }
        Ok(term)
    }

    fn unary(&mut self) -> Result<Term, Wrong> {
        self.skip_space();
        let at = self.at;
        let is_negative = self.take("-");
        if !is_negative && !self.take("!") {
            return self.primary();
        }
        self.deeper()?;
        let term = self.unary()?;
        self.depth -= 1;
        let kind = if is_negative {
            Kind::Number(Number::Negative(Box::new(term.number()?)))
        } else {
            Kind::Condition(Condition::Not(Box::new(term.condition()?)))
        };
        Ok(Term { at, kind })
    }

    fn primary(&mut self) -> Result<Term, Wrong> {
        self.skip_space();
        let at = self.at;
        if self.take("(") {
            let term = self.score()?;
            return if self.take(")") {
                Ok(term)
            } else {
                Err(self.unexpected("an operator or `)`"))
            };
        }
        let word = self.word();
        let kind = match word.chars().next() {
            Some('0'..='9' | '.') => Kind::Number(Number::Constant(self.constant(at, word)?)),
            Some(_) if word == "true" => Kind::Condition(Condition::Constant(true)),
            Some(_) if word == "false" => Kind::Condition(Condition::Constant(false)),
            Some(_) if self.take("(") => Kind::Number(self.function(at, word)?),
            Some(_) => Kind::Number(self.name(at, word)?),
            None => return Err(self.unexpected(WANTED)),
        };
        Ok(Term { at, kind })
    }

    /// A number, a name, or a function's: letters, digits, `_` and `.`, and the sign of an exponent.
    fn word(&mut self) -> &'a str {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let is_number = bytes.get(start).is_some_and(|byte| byte.is_ascii_digit() || *byte == b'.');
        while let Some(byte) = bytes.get(self.at) {
            let is_exponent = is_number
                && matches!(byte, b'+' | b'-')
                && matches!(bytes.get(self.at.wrapping_sub(1)), Some(b'e' | b'E'));
            if !byte.is_ascii_alphanumeric() && !matches!(byte, b'_' | b'.') && !is_exponent {
                break;
            }
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn constant(&self, at: usize, word: &str) -> Result<f64, Wrong> {
        // CEL's unsigned integers end with `u`.
        let digits = word.strip_suffix(['u', 'U']).unwrap_or(word);
        let number = digits.parse::<f64>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| Wrong {
            at,
            found: format!("{word:?} is no number"),
            wanted: WANTED.to_owned(),
        })
    }

    fn name(&mut self, at: usize, word: &str) -> Result<Number, Wrong> {
        if let Some(status) = self.statuses.iter().position(|name| **name == *word) {
            self.used.push(status);
            return Ok(Number::Status(status));
        }
        let wanted = match &self.statuses[..] {
            [] => "the service has none".to_owned(),
            names => format!("one of {}", names.join(", ")),
        };
        Err(Wrong { at, found: format!("no status object is called {word:?}"), wanted })
    }

    /// Behind its opening bracket.
    fn function(&mut self, at: usize, word: &str) -> Result<Number, Wrong> {
        let one = ONE.into_iter().find(|(name, _)| *name == word);
        let more = MORE.into_iter().find(|(name, _)| *name == word);
        if one.is_none() && more.is_none() {
            let names = ONE.iter().map(|(name, _)| *name).chain(MORE.iter().map(|(name, _)| *name));
            let wanted = format!("one of {}", names.collect::<Vec<_>>().join(", "));
            return Err(Wrong { at, found: format!("there is no function {word:?}"), wanted });
        }
        let mut number = self.score()?.number()?;
        if let Some((_, function)) = one {
            number = Number::One(function, Box::new(number));
        }
        while let Some((_, function)) = more
            && self.take(",")
        {
            number = Number::Two(function, Box::new((number, self.score()?.number()?)));
        }
        if !self.take(")") {
            return Err(self.unexpected(if one.is_some() { "`)`" } else { "`,` or `)`" }));
        }
        Ok(number)
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn take(&mut self, sign: &str) -> bool {
        self.skip_space();
        let is_next = self.text[self.at..].starts_with(sign);
        self.at += if is_next { sign.len() } else { 0 };
        is_next
    }

    fn deeper(&mut self) -> Result<(), Wrong> {
        self.depth += 1;
        if self.depth <= DEEPEST {
            return Ok(());
        }
        let found = format!("more than {DEEPEST} brackets and signs within each other");
        Err(Wrong { at: self.at, found, wanted: "a simpler expression".to_owned() })
    }

    fn unexpected(&self, wanted: &str) -> Wrong {
        let found = match self.text[self.at..].chars().next() {
            Some(c) => format!("found {c:?}"),
            None => "the expression ends here".to_owned(),
        };
        Wrong { at: self.at, found, wanted: wanted.to_owned() }
    }
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
            ("!(rtt > 5) || true == (clients != 3) ? 1 : 1.5e+1", 15.0),
            ("2 - 3 - 4 * -5", 19.0),
            ("double(7)", 7.0),
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
            ("clients + * 2", 10, "found '*'"),
            ("clients + nope", 10, "no status object is called \"nope\""),
            ("clients +", 9, "the expression ends here"),
            ("clients +\n  pending", 12, "no status object is called \"pending\""),
            ("clients clients", 8, "found 'c'"),
            ("", 0, "the expression ends here"),
            ("clients + \"3\"", 10, "found '\"'"),
            ("[1, 2].map(x, x)", 0, "found '['"),
            ("clients > 1", 0, "this is true or false"),
            ("1 + (clients > 1)", 5, "this is true or false"),
            ("clients ? 1 : 2", 0, "this is a number"),
            ("rtt > 1 ? 1 : true", 14, "this is true or false"),
            ("rtt > 1 ? 1", 11, "the expression ends here"),
            ("1 < 2 < 3", 0, "this is true or false"),
            ("!clients", 1, "this is a number"),
            ("clients + größe", 10, "no status object is called \"gr\""),
            ("clients + ö", 10, "found 'ö'"),
            ("math", 0, "no status object is called \"math\""),
            ("queue-length", 0, "no status object is called \"queue\""),
            ("math.sqrt(1, 2)", 11, "found ','"),
            ("greatest(clients, 1)", 0, "there is no function \"greatest\""),
            ("1.2.3", 0, "\"1.2.3\" is no number"),
            ("0x10", 0, "\"0x10\" is no number"),
            ("1e999", 0, "\"1e999\" is no number"),
            ("clients % 2", 8, "found '%'"),
            ("clients & 1", 8, "found '&'"),
            ("(clients", 8, "the expression ends here"),
        ] {
            let wrong = Score::parse(text, &STATUSES).unwrap_err();
            assert_eq!((wrong.at, &*wrong.found), (at, found), "{text}");
        }
        for text in ["1+".repeat(600), "(".repeat(1000), "-".repeat(900) + "1", "!".repeat(1000)] {
            assert!(Score::parse(&text, &STATUSES).is_err());
        }
        let nested =
            |depth| Score::parse(&format!("{}1{}", "(".repeat(depth), ")".repeat(depth)), &[]);
        assert!(nested(DEEPEST - 1).is_ok() && nested(DEEPEST).is_err());
        assert!(Score::parse(&format!("{}1", "1+".repeat(500)), &[]).is_ok());
    }

    #[test]
    fn two_scores_are_the_same_if_they_say_the_same_of_the_same() {
        let parse = |text, statuses: &[&str]| Score::parse(text, statuses).unwrap();
        assert_eq!(parse("clients", &["clients", "rtt"]), parse("clients", &["clients"]));
        assert_ne!(parse("clients", &["rtt", "clients"]), parse("clients", &["clients"]));
    }

    /// An expression of CEL as CEL has it: every number with a point.
    fn expression() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            (0u32..20).prop_map(|n| format!("{}.5", n)),
            prop::sample::select(vec!["clients", "queue_length", "rtt"]).prop_map(str::to_owned),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            let operator = prop::sample::select(vec!["+", "-", "*", "/"]);
            let relation = prop::sample::select(vec!["<", "<=", ">", ">=", "==", "!="]);
            let logic = prop::sample::select(vec!["&&", "||", "== !"]);
            let two = (inner.clone(), operator, inner.clone());
            let choice = (inner.clone(), relation, inner.clone(), logic, inner.clone());
            prop_oneof![
                two.clone().prop_map(|(a, o, b)| format!("{a} {o} {b}")),
                two.prop_map(|(a, o, b)| format!("({a} {o} {b})")),
                inner.clone().prop_map(|a| format!("-({a})")),
                inner.clone().prop_map(|a| format!("math.abs({a})")),
                (inner.clone(), inner.clone())
                    .prop_map(|(a, b)| format!("math.greatest({a}, {b})")),
                choice.prop_map(|(a, r, b, l, c)| format!(
                    "({a} {r} {b} {l} ({c} {r} {a}) ? {b} : {c})"
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_is_what_cel_makes_of_it(
            text in expression(),
            values in prop::array::uniform3(-100i16..100),
        ) {
            use cel::{Context, Env, Value, extensions};
            let values = values.map(f64::from);
            let mut environment = Env::stdlib();
            environment.add_extension(extensions::math).unwrap();
            let environment = Arc::new(environment);
            // Its parser and its evaluation take more of the stack than a test has.
            let run = {
                let (text, environment) = (text.clone(), environment);
                move || {
                    let program = environment.compile(&text).unwrap();
                    let mut context = Context::with_env(environment);
                    for (name, value) in ["clients", "queue_length", "rtt"].iter().zip(values) {
                        context.add_variable_from_value(*name, value);
                    }
                    program.execute(&context)
                }
            };
            let thread = std::thread::Builder::new().stack_size(256 << 20).spawn(run).unwrap();
            // NaN has no order in CEL.
            let Ok(wanted) = thread.join().unwrap() else { return Ok(()) };
            let Value::Float(wanted) = wanted else { panic!("a number") };
            let ours = Score::parse(&text, &STATUSES).unwrap().value(&values.map(Some));
            if wanted.is_finite() {
                prop_assert_eq!(ours, Ok(wanted), "{}", text);
            } else {
                prop_assert!(ours.is_err(), "{}", text);
            }
        }

        #[test]
        fn no_text_does_harm(text in "\\PC{0,60}") {
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
