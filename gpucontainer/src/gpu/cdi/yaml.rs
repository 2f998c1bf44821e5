//! YAML to the values of JSON, as far as specifications use it.
//!
//! Numbers with a leading zero are octal, as in the reference implementation: hand-written permission bits are.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Deeper than any specification.
const DEEPEST: usize = 32;
/// More values than any specification has; aliases that multiply end here.
const MOST: usize = 200_000;

/// A list or an object that has not ended.
enum Open {
    List(Vec<Value>),
    /// With the key whose value comes next.
    Object(Map<String, Value>, Option<String>),
}

/// The only document of `text`.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        reader.take(event).map_err(|why| format!("{why} at line {}", span.start.line()))?;
    }
    reader.document.ok_or_else(|| "the document is empty".to_owned())
}

#[derive(Default)]
struct Reader {
    document: Option<Value>,
    open: Vec<(Open, usize)>,
    anchors: BTreeMap<usize, Value>,
    values: usize,
}

impl Reader {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = match &tag {
                    Some(tag) if tag.handle == "tag:yaml.org,2002:" && tag.suffix == "str" => true,
                    Some(tag) => return Err(format!("tag {}{} is not known", tag.handle, tag.suffix)),
                    None => false,
                };
                let plain = style == ScalarStyle::Plain && !text_tag;
                let value = if plain { plain_value(&text)? } else { Value::String(text.into_owned()) };
                self.add(value, anchor)
            }
            Event::SequenceStart(anchor, None) => self.begin(Open::List(Vec::new()), anchor),
            Event::MappingStart(anchor, None) => self.begin(Open::Object(Map::new(), None), anchor),
            Event::SequenceStart(..) | Event::MappingStart(..) => Err("a tag that is not known".to_owned()),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::List(list), anchor)) => self.add(Value::Array(list), anchor),
                Some((Open::Object(object, None), anchor)) => self.add(Value::Object(object), anchor),
                _ => Err("an end without a beginning".to_owned()),
            },
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned().ok_or("an alias of something that has not ended")?;
                self.values += count(&value);
                self.add(value, 0)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open, anchor: usize) -> Result<(), String> {
        if self.open.len() >= DEEPEST {
            return Err(format!("nested more than {DEEPEST} deep"));
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn add(&mut self, value: Value, anchor: usize) -> Result<(), String> {
        self.values += 1;
        if self.values > MOST {
            return Err(format!("more than {MOST} values"));
        }
        if anchor != 0 {
            self.values += count(&value);
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None if self.document.is_some() => return Err("a second document".to_owned()),
            None => self.document = Some(value),
            Some((Open::List(list), _)) => list.push(value),
            Some((Open::Object(object, key @ Some(_)), _)) => {
                let key = key.take().unwrap_or_default();
                if object.contains_key(&key) {
                    return Err(format!("key {key:?} comes twice"));
                }
                object.insert(key, value);
            }
            Some((Open::Object(_, key), _)) => match value {
                Value::String(text) => *key = Some(text),
                other => return Err(format!("key {other} is no text")),
            },
        }
        Ok(())
    }
}

/// How many values there are in one.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(count).sum::<usize>(),
        Value::Object(object) => 1 + object.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// What a word without quotes stands for.
fn plain_value(text: &str) -> Result<Value, String> {
    let value = match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => match number(text) {
            Some(Some(number)) => number.into(),
            Some(None) => return Err(format!("number {text} is too large")),
            None => fraction(text).unwrap_or_else(|| Value::String(text.to_owned())),
        },
    };
    Ok(value)
}

/// A whole number, `Some(None)` if it is too large, `None` if the text is none.
fn number(text: &str) -> Option<Option<i64>> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (digits, radix) = match unsigned {
        _ if unsigned.starts_with("0x") => (&unsigned[2..], 16),
        _ if unsigned.starts_with("0o") => (&unsigned[2..], 8),
        _ if unsigned.len() > 1 && unsigned.starts_with('0') => (&unsigned[1..], 8),
        _ => (unsigned, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let magnitude = i64::from_str_radix(digits, radix).ok();
    Some(magnitude.map(|magnitude| if text.starts_with('-') { -magnitude } else { magnitude }))
}

/// A number with a point or an exponent: never right where it is used, so that the reader of the field says so.
fn fraction(text: &str) -> Option<Value> {
    let looks = text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first))
        && text.contains(|sign: char| sign.is_ascii_digit());
    let number = looks.then(|| text.parse::<f64>().ok()).flatten()?;
    serde_json::Number::from_f64(number).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn words_stand_for_what_they_look_like() {
        let text = "version: 0.5.0\nnumber: 195\noctal: 0666\nhexadecimal: 0x1b6\nquoted: \"0\"\nsingle: '1'\nnothing:\n\
                    yes: true\nlist:\n- a\n- -5\n- 1.5\n- {b: [c]}\nblock: |\n  two\n  lines\ntagged: !!str 7\n";
        let expected = json!({
            "version": "0.5.0", "number": 195, "octal": 438, "hexadecimal": 438, "quoted": "0", "single": "1",
            "nothing": null, "yes": true, "list": ["a", -5, 1.5, {"b": ["c"]}], "block": "two\nlines\n", "tagged": "7",
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("a: &x [1, 2]\nb: *x\n").unwrap(), json!({"a": [1, 2], "b": [1, 2]}));
    }

    #[test]
    fn what_no_specification_needs_is_refused() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            bomb += &format!("a{level}: &a{level} [{}]\n", before.trim_end_matches(", "));
        }
        let table = [
            ("", "empty"),
            ("a: 1\na: 2\n", "twice at line 2"),
            ("a: 1\n---\nb: 2\n", "second document"),
            ("1: a\n", "no text"),
            ("a: !thing b\n", "tag"),
            ("a: 99999999999999999999\n", "too large"),
            ("a: *nowhere\n", "anchor"),
            (&deep, "deep"),
            (&bomb, "more than 200000"),
        ];
        for (text, why) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text:.40}: {error}");
        }
        for text in ["a: [1", "a: b: c", "- a\nb: c", "a: \"x"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-a-b:{}\\[\\],&*!|>'\"#%@0-9~ \n\t]{0,80}") {
            let _ = parse(&text);
        }
    }
}
