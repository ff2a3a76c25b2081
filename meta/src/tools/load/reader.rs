//! JSON as it arrives: what a dump of any size is read with. Values that are small by their nature are cut
//! out as text and decoded elsewhere; objects and arrays that may be large are walked.

use std::io::Read;

use super::LoadError;

/// Longest value that is held in memory: the setting, an extended attribute's 64 KiB as escapes, the longest
/// list of a chunk.
const VALUE_BYTES_MAX: usize = 32 << 20;

/// See the module.
pub(super) struct JsonReader<'a> {
    input: &'a mut dyn Read,
    buffer: Vec<u8>,
    at: usize,
    /// Bytes of the input before the buffer.
    before: u64,
}

/// What to do with a value's bytes.
enum Sink<'a> {
    Keep(&'a mut Vec<u8>),
    Skip,
}

impl Sink<'_> {
    fn take(&mut self, byte: u8) -> bool {
        match self {
            Sink::Keep(text) if text.len() >= VALUE_BYTES_MAX => false,
            Sink::Keep(text) => {
                text.push(byte);
                true
            }
            Sink::Skip => true,
        }
    }
}

impl<'a> JsonReader<'a> {
    pub(super) fn new(input: &'a mut dyn Read) -> JsonReader<'a> {
        JsonReader {
            input,
            buffer: Vec::new(),
            at: 0,
            before: 0,
        }
    }

    /// `{`.
    pub(super) fn enter_object(&mut self) -> Result<(), LoadError> {
        self.expect(b'{', "an object")
    }

    /// `[`; an absent list (`null`) is answered with false.
    pub(super) fn enter_array(&mut self) -> Result<bool, LoadError> {
        if self.peek()? == Some(b'n') {
            self.value()?;
            return Ok(false);
        }
        self.expect(b'[', "a list")?;
        Ok(true)
    }

    /// The next key of an object, its `:` consumed; `None` at its end. `first` says whether it is the first.
    pub(super) fn next_key(&mut self, first: &mut bool) -> Result<Option<String>, LoadError> {
        if !self.next_item(b'}', first)? {
            return Ok(None);
        }
        if self.peek()? != Some(b'"') {
            return Err(self.wrong("expected a name in quotes"));
        }
        let text = self.value()?;
        let key = serde_json::from_slice(&text).map_err(|error| self.wrong(error))?;
        self.expect(b':', "a colon")?;
        Ok(Some(key))
    }

    /// Whether an array goes on; then its next element follows.
    pub(super) fn next_element(&mut self, first: &mut bool) -> Result<bool, LoadError> {
        self.next_item(b']', first)
    }

    fn next_item(&mut self, end: u8, first: &mut bool) -> Result<bool, LoadError> {
        let first = std::mem::replace(first, false);
        match self.peek()? {
            Some(byte) if byte == end => {
                self.at += 1;
                Ok(false)
            }
            Some(_) if first => Ok(true),
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            _ => Err(self.wrong(format!("expected ',' or '{}'", char::from(end)))),
        }
    }

    /// One value, decoded.
    pub(super) fn decode<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, LoadError> {
        let text = self.value()?;
        serde_json::from_slice(&text).map_err(|error| self.wrong(error))
    }

    /// The text of one value.
    pub(super) fn value(&mut self) -> Result<Vec<u8>, LoadError> {
        let mut text = Vec::new();
        self.pass(Sink::Keep(&mut text))?;
        Ok(text)
    }

    /// Passes over one value of any size.
    pub(super) fn skip(&mut self) -> Result<(), LoadError> {
        self.pass(Sink::Skip)
    }

    /// The input holds nothing more.
    pub(super) fn expect_end(&mut self) -> Result<(), LoadError> {
        match self.peek()? {
            None => Ok(()),
            Some(_) => Err(self.wrong("expected the end of the dump")),
        }
    }

    fn pass(&mut self, mut sink: Sink<'_>) -> Result<(), LoadError> {
        let mut depth = 0_u32;
        self.peek()?;
        loop {
            let Some(byte) = self.byte()? else {
                return Err(self.wrong("the dump ends in the middle of a value"));
            };
            let scalar_ends = depth == 0 && matches!(byte, b',' | b'}' | b']' | b':');
            if scalar_ends || (depth == 0 && byte.is_ascii_whitespace()) {
                return Ok(());
            }
            self.at += 1;
            if !sink.take(byte) {
                return Err(self.wrong("a value is longer than any that a volume can hold"));
            }
            match byte {
                b'"' => self.pass_string(&mut sink)?,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => continue,
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// The rest of a string whose opening quote is passed.
    fn pass_string(&mut self, sink: &mut Sink<'_>) -> Result<(), LoadError> {
        let mut escaped = false;
        loop {
            let Some(byte) = self.byte()? else {
                return Err(self.wrong("the dump ends in the middle of a string"));
            };
            self.at += 1;
            if !sink.take(byte) {
                return Err(self.wrong("a string is longer than any that a volume can hold"));
            }
            match byte {
                b'"' if !escaped => return Ok(()),
                b'\\' => escaped = !escaped,
                _ => escaped = false,
            }
        }
    }

    fn expect(&mut self, wanted: u8, what: &str) -> Result<(), LoadError> {
        if self.peek()? == Some(wanted) {
            self.at += 1;
            return Ok(());
        }
        Err(self.wrong(format!("expected {what}")))
    }

    /// The next byte that is not white space, left there.
    fn peek(&mut self) -> Result<Option<u8>, LoadError> {
        while let Some(byte) = self.byte()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.at += 1;
        }
        Ok(None)
    }

    /// The next byte, left there.
    fn byte(&mut self) -> Result<Option<u8>, LoadError> {
        if self.at == self.buffer.len() {
            self.before += self.at as u64;
            self.at = 0;
            self.buffer.resize(64 << 10, 0);
            let read = loop {
                match self.input.read(&mut self.buffer) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    read => break read?,
                }
            };
            self.buffer.truncate(read);
        }
        Ok(self.buffer.get(self.at).copied())
    }

    /// The dump is not what it should be at this place.
    pub(super) fn wrong(&self, cause: impl std::fmt::Display) -> LoadError {
        LoadError::Syntax {
            offset: self.before + self.at as u64,
            cause: cause.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_out_and_passed() {
        let text = r#" {"a" : {"x":["}\"",1]} ,"b":-12.5,"c":[ 1 , {"y":null} ], "d":"\\" } "#;
        let mut input = text.as_bytes();
        let mut reader = JsonReader::new(&mut input);
        reader.enter_object().unwrap();
        let mut first = true;
        assert_eq!(reader.next_key(&mut first).unwrap().unwrap(), "a");
        assert_eq!(reader.value().unwrap(), br#"{"x":["}\"",1]}"#);
        assert_eq!(reader.next_key(&mut first).unwrap().unwrap(), "b");
        assert_eq!(reader.decode::<f64>().unwrap(), -12.5);
        assert_eq!(reader.next_key(&mut first).unwrap().unwrap(), "c");
        assert!(reader.enter_array().unwrap());
        let mut begin = true;
        assert!(reader.next_element(&mut begin).unwrap());
        assert_eq!(reader.decode::<u32>().unwrap(), 1);
        assert!(reader.next_element(&mut begin).unwrap());
        reader.skip().unwrap();
        assert!(!reader.next_element(&mut begin).unwrap());
        assert_eq!(reader.next_key(&mut first).unwrap().unwrap(), "d");
        assert_eq!(reader.decode::<String>().unwrap(), "\\");
        assert_eq!(reader.next_key(&mut first).unwrap(), None);
        reader.expect_end().unwrap();
    }

    #[test]
    fn damage_is_named_with_its_place() {
        for (text, place) in [
            ("{\"a\" 1}", 5),
            ("{\"a\":1 2}", 7),
            ("{\"a\":[", 6),
            ("[", 0),
        ] {
            let mut input = text.as_bytes();
            let mut reader = JsonReader::new(&mut input);
            let mut walk = || {
                reader.enter_object()?;
                let mut first = true;
                while reader.next_key(&mut first)?.is_some() {
                    reader.skip()?;
                }
                Ok(())
            };
            match walk() {
                Err(LoadError::Syntax { offset, .. }) => assert_eq!(offset, place, "{text}"),
                other => panic!("{other:?} of {text}"),
            }
        }
    }
}
