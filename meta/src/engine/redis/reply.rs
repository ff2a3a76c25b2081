//! Replies as the shapes the engine expects; anything else is an error that names the key. Pure.

use redis::Value;

use crate::engine::EngineResult;

use super::layout::corrupt;

/// A string, or `None` for nil.
pub(super) fn bytes(key: &str, value: Value) -> EngineResult<Option<Vec<u8>>> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(raw) => Ok(Some(raw)),
        Value::SimpleString(text) => Ok(Some(text.into_bytes())),
        Value::Okay => Ok(Some(b"OK".to_vec())),
        other => Err(unexpected(key, "a string", &other)),
    }
}

/// A list; empty for nil.
pub(super) fn list(key: &str, value: Value) -> EngineResult<Vec<Value>> {
    match value {
        Value::Nil => Ok(Vec::new()),
        Value::Array(values) | Value::Set(values) => Ok(values),
        other => Err(unexpected(key, "a list", &other)),
    }
}

/// A list of strings.
pub(super) fn strings(key: &str, value: Value) -> EngineResult<Vec<Vec<u8>>> {
    list(key, value)?
        .into_iter()
        .map(|value| string(key, value))
        .collect()
}

/// A list of alternating fields and values.
pub(super) fn pairs(key: &str, value: Value) -> EngineResult<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut flat = strings(key, value)?.into_iter();
    let mut pairs = Vec::with_capacity(flat.len() / 2);
    while let Some(field) = flat.next() {
        let value = flat.next();
        pairs.push((
            field,
            value.ok_or_else(|| corrupt(key, "a field without a value"))?,
        ));
    }
    Ok(pairs)
}

/// A string that must be there.
pub(super) fn string(key: &str, value: Value) -> EngineResult<Vec<u8>> {
    bytes(key, value)?.ok_or_else(|| corrupt(key, "nil instead of a string"))
}

/// A number, as an integer or in decimal.
pub(super) fn number(key: &str, value: Value) -> EngineResult<i64> {
    match value {
        Value::Int(number) => Ok(number),
        other => super::layout::decode_number(key, &string(key, other)?),
    }
}

fn unexpected(key: &str, wanted: &str, found: &Value) -> crate::error::EngineError {
    corrupt(
        key,
        format!("{wanted} expected, the server answered {found:?}"),
    )
}
