//! One connection to an HTTP server, for one request.
//!
//! Sources: UEFI Specification 2.10, sections 7.1 (events and timers), 11.1 (EFI_SERVICE_BINDING_PROTOCOL) and 29.6
//! (EFI_HTTP_PROTOCOL); RFC 9110, section 8.6 (Content-Length).
#![expect(
    unsafe_code,
    reason = "the firmware's HTTP messages are raw pointers, and it allocates the fields of an answer"
)]

use alloc::format;
use core::{
    ffi::{CStr, c_char},
    ptr::NonNull,
    time::Duration,
};

use uefi::{
    CString16, Event, Handle, Status,
    boot::{self, EventType, ScopedProtocol, TimerTrigger, Tpl},
    proto::network::http::{Http, HttpBinding},
};
use uefi_raw::protocol::network::http::{
    HttpAccessPoint, HttpConfigData, HttpHeader, HttpMessage, HttpMethod, HttpRequestData,
    HttpRequestOrResponse, HttpResponseData, HttpStatusCode, HttpToken, HttpV4AccessPoint,
    HttpVersion,
};

use super::{super::source::open, Local};

/// Time limit of each step: the request, the answer's head, and each piece of its body. The firmware has shorter limits
/// of its own.
const LIMIT: Duration = Duration::from_secs(10);

/// The head of an answer.
pub(super) struct Answer {
    /// The status.
    pub status: HttpStatusCode,
    /// The length of the body in bytes, if the server has said it.
    pub length: Option<u64>,
}

/// A connection. It is closed on drop.
pub(super) struct Connection {
    binding: ScopedProtocol<HttpBinding>,
    child: Handle,
    /// `None` once it is closed.
    http: Option<ScopedProtocol<Http>>,
}

/// The direction of a message.
enum Direction {
    Request,
    Response,
}

impl Connection {
    /// Prepares a connection over a network card, from the address `local` or the firmware's default address. The
    /// server is reached with the first request.
    ///
    /// # Errors
    /// The firmware's status.
    pub fn open(card: Handle, local: Option<Local>) -> Result<Self, Status> {
        let mut binding = open::<HttpBinding>(card).ok_or(Status::UNSUPPORTED)?;
        let child = binding.create_child().map_err(|e| e.status())?;
        let http = open::<Http>(child);
        let mut connection = Self {
            binding,
            child,
            http,
        };
        let mut access = HttpV4AccessPoint {
            use_default_addr: local.is_none().into(),
            ..HttpV4AccessPoint::default()
        };
        if let Some(local) = local {
            access.local_address = local.address.into();
            access.local_subnet = local.mask.into();
        }
        let config = HttpConfigData {
            http_version: HttpVersion::HTTP_VERSION_11,
            time_out_millisec: LIMIT.as_millis() as u32,
            local_addr_is_ipv6: false.into(),
            access_point: HttpAccessPoint {
                ipv4_node: &raw mut access,
            },
        };
        let http = connection.http()?;
        http.configure(&config).map_err(|e| e.status())?;
        Ok(connection)
    }

    /// Makes a request, and waits for the head of the answer.
    ///
    /// # Errors
    /// The firmware's status.
    pub fn request(&mut self, method: HttpMethod, url: &str, host: &str) -> Result<Answer, Status> {
        let url = CString16::try_from(url).map_err(|_| Status::INVALID_PARAMETER)?;
        let host = format!("{host}\0");
        let agent = concat!("Seamark/", env!("CARGO_PKG_VERSION"), "\0");
        let fields = [
            ("Host\0", &*host),
            ("Accept\0", "*/*\0"),
            ("User-Agent\0", agent),
        ];
        let mut fields = fields.map(|(name, value)| HttpHeader {
            field_name: name.as_ptr(),
            field_value: value.as_ptr(),
        });
        let data = HttpRequestData {
            method,
            url: url.as_ptr().cast(),
        };
        let mut message = HttpMessage {
            data: HttpRequestOrResponse { request: &data },
            header_count: fields.len(),
            header: fields.as_mut_ptr(),
            ..HttpMessage::default()
        };
        self.complete(Direction::Request, &mut message)?;

        let mut data = HttpResponseData::default();
        let mut message = HttpMessage {
            data: HttpRequestOrResponse {
                response: &raw mut data,
            },
            ..HttpMessage::default()
        };
        let result = self.complete(Direction::Response, &mut message);
        // SAFETY: the firmware has filled the message, or left it without fields.
        let length = unsafe { take_length(&message) };
        match result {
            // The second one is that of an answer with a status of 400 or more.
            Ok(()) | Err(Status::HTTP_ERROR) => Ok(Answer {
                status: data.status_code,
                length,
            }),
            Err(status) => Err(status),
        }
    }

    /// Receives the next piece of the answer's body, and returns its length.
    ///
    /// # Errors
    /// The firmware's status.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Status> {
        let mut message = HttpMessage {
            body_length: buffer.len(),
            body: buffer.as_mut_ptr().cast(),
            ..HttpMessage::default()
        };
        self.complete(Direction::Response, &mut message)?;
        Ok(message.body_length.min(buffer.len()))
    }

    /// Hands a message to the firmware, and waits until it is complete. On a timeout, the connection is closed.
    fn complete(&mut self, direction: Direction, message: &mut HttpMessage) -> Result<(), Status> {
        let done = Signal::new(EventType::empty())?;
        let limit = Signal::new(EventType::TIMER)?;
        boot::set_timer(limit.event()?, TimerTrigger::Relative(LIMIT)).map_err(|e| e.status())?;
        let mut token = HttpToken {
            event: done.event()?.as_ptr(),
            status: Status::NOT_READY,
            message,
        };
        let http = self.http()?;
        match direction {
            Direction::Request => http.request(&mut token),
            Direction::Response => http.response(&mut token),
        }
        .map_err(|e| e.status())?;
        while !done.is_set() {
            if limit.is_set() {
                // Closing ends what can't be cancelled. The firmware forgets the token and the message.
                let _ = http.cancel(&mut token);
                self.close();
                return Err(Status::TIMEOUT);
            }
            // The status says only whether anything was to be done.
            let _ = http.poll();
        }
        match token.status {
            Status::SUCCESS => Ok(()),
            status => Err(status),
        }
    }

    fn http(&mut self) -> Result<&mut Http, Status> {
        self.http.as_deref_mut().ok_or(Status::NOT_STARTED)
    }

    fn close(&mut self) {
        // The protocol is closed before its handle goes.
        if self.http.take().is_some() {
            let _ = self.binding.destroy_child(self.child);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

/// Returns the length of the body that the fields of an answer state, and frees them.
///
/// # Safety
/// The firmware must have written the message, or it has no fields.
unsafe fn take_length(message: &HttpMessage) -> Option<u64> {
    let fields = NonNull::new(message.header)?;
    let mut length = None;
    for index in 0..message.header_count {
        // SAFETY: the firmware has written that many fields.
        let field = unsafe { fields.add(index).as_ref() };
        // SAFETY: their strings end with a zero.
        let (name, value) = unsafe { (bytes(field.field_name), bytes(field.field_value)) };
        length = length.or_else(|| content_length(name, value));
        for text in [field.field_name, field.field_value] {
            if let Some(text) = NonNull::new(text.cast_mut()) {
                // SAFETY: the firmware has allocated it for this program, and nothing refers to it any more.
                let _ = unsafe { boot::free_pool(text) };
            }
        }
    }
    // SAFETY: as above.
    let _ = unsafe { boot::free_pool(fields.cast()) };
    length
}

/// Returns the bytes of a string that may be missing.
///
/// # Safety
/// It must end with a zero, and live as long as the result is used.
unsafe fn bytes<'a>(text: *const u8) -> &'a [u8] {
    if text.is_null() {
        return &[];
    }
    // SAFETY: as promised by the caller.
    unsafe { CStr::from_ptr(text.cast::<c_char>()) }.to_bytes()
}

/// Reads a field of an answer. Returns `None` if it does not state a length.
fn content_length(name: &[u8], value: &[u8]) -> Option<u64> {
    if !name.eq_ignore_ascii_case(b"content-length") {
        return None;
    }
    let digits = value.trim_ascii();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    core::str::from_utf8(digits)
        .ok()
        .filter(|_| is_number)?
        .parse()
        .ok()
}

/// An event of the firmware without a handler. It is closed on drop.
struct Signal(Option<Event>);

impl Signal {
    fn new(kind: EventType) -> Result<Self, Status> {
        // SAFETY: there is no handler that could be called.
        let event = unsafe { boot::create_event(kind, Tpl::CALLBACK, None, None) };
        event.map(|event| Self(Some(event))).map_err(|e| e.status())
    }

    fn event(&self) -> Result<&Event, Status> {
        self.0.as_ref().ok_or(Status::NOT_STARTED)
    }

    /// Returns whether it was signalled since the last call.
    fn is_set(&self) -> bool {
        let event = self.0.as_ref();
        event.is_some_and(|event| boot::check_event(event).unwrap_or(true))
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        if let Some(event) = self.0.take() {
            let _ = boot::close_event(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_the_body_is_a_number_in_one_field() {
        assert_eq!(content_length(b"Content-Length", b" 17 "), Some(17));
        assert_eq!(content_length(b"content-length", b"0"), Some(0));
        for wrong in [
            &b""[..],
            b"-1",
            b"+1",
            b"1, 1",
            b"0x10",
            b"99999999999999999999",
        ] {
            assert_eq!(content_length(b"Content-Length", wrong), None);
        }
        assert_eq!(content_length(b"Content-Type", b"17"), None);
    }
}
