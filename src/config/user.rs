//! `user = "postgres"`: a name of this host as a user id.
#![allow(unsafe_code)] // getpwnam_r(3): only libc knows all the places where users may be listed.

use std::ffi::CString;
use std::io;

use toml::de::DeValue;

use super::mistake::Mistakes;
use super::reader::{Value, integer, is_a};

/// Largest user id; the one above it means "none" to the kernel.
const GREATEST: u32 = u32::MAX - 1;

/// A name that this host knows, or a number; or a complaint.
pub(super) fn read(value: &Value<'_>, mistakes: &mut Mistakes<'_>) -> Option<u32> {
    let wanted = "the name of a user of this host, or a user id";
    let (found, id) = match value.get_ref() {
        DeValue::Integer(number) => (format!("`user` is {number}"), integer(number)),
        DeValue::String(text) if is_number(text) => {
            (format!("`user` is {text:?}"), text.parse().ok())
        }
        DeValue::String(text) => match id_of(text) {
            Ok(id) => (format!("this host has no user {text:?}"), id),
            Err(error) => (format!("the user {text:?} cannot be looked up: {error}"), None),
        },
        other => (is_a("user", other), None),
    };
    let id = id.filter(|id| *id <= GREATEST);
    if id.is_none() {
        mistakes.error(value.span(), found, wanted);
    }
    id
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The user id that `text` names or is; `None`: there is no such user, or nobody can tell.
pub fn user_id(text: &str) -> Option<u32> {
    let id = if is_number(text) { text.parse().ok() } else { id_of(text).ok().flatten() };
    id.filter(|id| *id <= GREATEST)
}

/// The id of a user; `None`: there is no such user.
fn id_of(name: &str) -> io::Result<Option<u32>> {
    /// More than any entry takes.
    const LARGEST: usize = 1 << 20;
    let Ok(name) = CString::new(name) else { return Ok(None) };
    let mut buffer: Vec<libc::c_char> = vec![0; 1 << 10];
    loop {
        // SAFETY: all-zero bytes are a valid `passwd` of null pointers.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut result = std::ptr::null_mut();
        // SAFETY: the name ends with a zero byte, the buffer has the length that is said, and both outlive
        // the call, as do the two places that are written to.
        let error = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                &raw mut entry,
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut result,
            )
        };
        match error {
            0 if !result.is_null() => return Ok(Some(entry.pw_uid)),
            // What systems say of a name that nobody has (getpwnam(3)).
            0 | libc::ENOENT | libc::ESRCH => return Ok(None),
            libc::EINTR => {}
            libc::ERANGE if buffer.len() < LARGEST => buffer.resize(buffer.len() * 4, 0),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}
