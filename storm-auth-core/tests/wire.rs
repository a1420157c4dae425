//! The wire codec's reading half: token responses, Retry-After and challenges. Bytes in, values out.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use proptest::prelude::*;
use storm_auth_core::wire::challenge::{BearerError, MAX_FIELD, bearer_error, rejects_token};
use storm_auth_core::wire::response::{
    AccessToken, Answer, BodyTooLarge, Class, DEFAULT_LIFETIME, Diagnostic, Grant, MAX_ACCESS_TOKEN, MAX_LIFETIME,
    MAX_RESPONSE_BODY, Malformed, Outcome, Refusal, ResponseBody, TokenFault, read_response,
};
use storm_auth_core::wire::retry_after::{MAX_RETRY_AFTER, RetryAfter, retry_after};

const SECRET: &str = "C4nary-s3cret-0123456789";

fn answer_with(status: u16, headers: &[(HeaderName, &[u8])], body: &[u8], secrets: &[&[u8]]) -> Answer {
    let mut response = Response::new(ResponseBody::new());
    let _ = response.body_mut().push(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
    }
    read_response(&response, secrets, Duration::ZERO)
}

fn answer(status: u16, body: &[u8]) -> Answer {
    answer_with(status, &[], body, &[SECRET.as_bytes()])
}

fn granted(answer: Answer) -> (Grant, Vec<Diagnostic>) {
    match answer.outcome {
        Outcome::Granted(grant) => (grant, answer.diagnostics),
        Outcome::Refused(refusal) => panic!("refused: {refusal}"),
    }
}

fn refused(answer: Answer) -> Refusal {
    match answer.outcome {
        Outcome::Granted(grant) => panic!("granted: {grant:?}"),
        Outcome::Refused(refusal) => refusal,
    }
}

/// What is wrong with a body that came with a 200; it is transient.
fn problem(body: &[u8]) -> Malformed {
    let refusal = refused(answer(200, body));
    assert_eq!(refusal.class, Class::Transient);
    assert_eq!(refusal.error, None);
    refusal.problem.unwrap()
}

fn class(status: u16, body: &str) -> Class {
    refused(answer(status, body.as_bytes())).class
}

fn lifetime(expires_in: &str) -> (Duration, Vec<Diagnostic>) {
    let body = format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":{expires_in}}}"#);
    let (grant, diagnostics) = granted(answer(200, body.as_bytes()));
    (grant.lifetime, diagnostics)
}

fn seconds(expires_in: &str) -> u64 {
    let (lifetime, diagnostics) = lifetime(expires_in);
    assert_eq!(diagnostics, [], "{expires_in}");
    lifetime.as_secs()
}

fn headers(name: HeaderName, fields: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for field in fields {
        headers.append(&name, HeaderValue::from_bytes(field.as_bytes()).unwrap());
    }
    headers
}

/// Whatever bytes a header field may have.
fn field_bytes(length: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![4 => b' '..=b'~', 1 => 0x80u8..=0xFF, 1 => Just(b'\t')], 0..length)
}

// ---- the response -------------------------------------------------------------------------------------------------------

#[test]
fn r8_a_2xx_object_is_read_whatever_its_content_type_says() {
    let body = br#"{"access_token":"t0ken","expires_in":3600,"token_type":"Bearer","scope":"lab"}"#;
    for kind in [&b"text/html"[..], b"application/json; charset=utf-16", b"", b"\xFF"] {
        let (grant, diagnostics) = granted(answer_with(200, &[(CONTENT_TYPE, kind)], body, &[]));
        assert_eq!(grant.access_token.as_bytes(), b"t0ken");
        assert_eq!(grant.lifetime, Duration::from_secs(3600));
        assert_eq!(grant.scope.as_deref(), Some("lab"));
        assert_eq!(diagnostics, []);
    }
    for status in [200, 201, 203, 299] {
        granted(answer(status, body));
    }
}

#[test]
fn r9_unknown_members_of_any_type_are_ignored() {
    let body = br#" {"a":null,"a":[1,{"access_token":"x","access_token":1}],"b":1e400,"c":true,"id_token":{"error":"no"},
        "refresh_token":"r1","refresh_token":2,"Error":"E","access_token":"t0ken","token_type":"bearer","expires_in":1} "#;
    let (grant, diagnostics) = granted(answer(200, body));
    assert_eq!(grant.access_token.as_bytes(), b"t0ken");
    assert_eq!(diagnostics, []);
}

#[test]
fn r9_r65_an_unknown_member_may_be_nested_to_any_depth() {
    let deep = 30_000;
    let body = format!(r#"{{"x":{}{},"access_token":"t0ken"}}"#, "[".repeat(deep), "]".repeat(deep));
    granted(answer(200, body.as_bytes()));
    let body = format!(r#"{{"access_token":{}{}}}"#, "[".repeat(deep), "]".repeat(deep));
    assert_eq!(problem(body.as_bytes()), Malformed::AccessToken(TokenFault::NotAString));
    assert_eq!(problem(&b"[".repeat(MAX_RESPONSE_BODY)), Malformed::NotJson);
}

#[test]
fn r10_a_body_past_64_kib_is_refused_and_stays_refused() {
    let mut body = ResponseBody::new();
    for _ in 0..64 {
        body.push(&[b' '; 1024]).unwrap();
    }
    assert_eq!((body.len(), body.is_empty(), body.is_too_large()), (MAX_RESPONSE_BODY, false, false));
    assert!(ResponseBody::new().is_empty());
    assert_eq!(body.push(b""), Ok(()));
    assert_eq!(body.push(b" "), Err(BodyTooLarge));
    assert!(body.is_too_large());
    assert_eq!(body.as_bytes(), b"");
    assert_eq!(body.push(b""), Err(BodyTooLarge));
    assert!(ResponseBody::try_from(&[0; MAX_RESPONSE_BODY][..]).is_ok());
    assert!(ResponseBody::try_from(&[0; MAX_RESPONSE_BODY + 1][..]).is_err());
}

#[test]
fn r10_too_large_is_malformed_but_the_status_still_decides() {
    let endless = vec![b' '; MAX_RESPONSE_BODY + 1];
    assert_eq!(problem(&endless), Malformed::TooLarge);
    let refusal = refused(answer(429, &endless));
    assert_eq!((refusal.class, refusal.problem), (Class::Throttled, Some(Malformed::TooLarge)));
    assert_eq!(refused(answer(400, &endless)).class, Class::Configuration);
}

#[test]
fn r10_an_encoded_body_fails() {
    let body = br#"{"access_token":"t0ken"}"#;
    for coding in [&b"gzip"[..], b"identity, br", b"identity;q=1", b"\xFF"] {
        let refusal = refused(answer_with(200, &[(CONTENT_ENCODING, coding)], body, &[]));
        assert_eq!((refusal.class, refusal.problem), (Class::Transient, Some(Malformed::Encoded)));
    }
    let twice: [(HeaderName, &[u8]); 2] = [(CONTENT_ENCODING, b"identity"), (CONTENT_ENCODING, b"gzip")];
    assert_eq!(refused(answer_with(200, &twice, body, &[])).problem, Some(Malformed::Encoded));
    assert_eq!(refused(answer_with(400, &twice, body, &[])).problem, Some(Malformed::Encoded));
    for coding in [&b"identity"[..], b"IDENTITY", b"", b" , identity"] {
        granted(answer_with(200, &[(CONTENT_ENCODING, coding)], body, &[]));
    }
}

#[test]
fn r11_whatever_is_not_one_json_object_is_malformed() {
    for body in [&b"[]"[..], b"[{\"access_token\":\"t\"}]", b"null", b"true", b"1", b"1e400", b" \"access_token\" "] {
        assert_eq!(problem(body), Malformed::NotAnObject, "{}", body.escape_ascii());
    }
    for body in [
        &b"<html>"[..],
        b"{",
        b"}",
        b"[1",
        b"{\"access_token\":\"t\"",
        b"{\"access_token\":\"t\",}",
        b"{\"access_token\":\"t\"} x",
        b"{\"access_token\":\"t\"}{}",
        b"{\"access_token\":\"t\"}\0",
        b"{\0\"\0a\0",
        b"\xEF\xBB\xBF\xEF\xBB\xBF{\"access_token\":\"t\"}",
        b"{\"access_token\":\"t\"}\xEF\xBB\xBF",
        b"{\"access_token\":\"t\n\"}",
        b"{\"access_token\":\"\\x\"}",
        b"{\"access_token\":\"\\u12\"}",
        b"{\"access_token\":\"t\",\"x\":\"\\u12G4\"}",
        b"{'access_token':'t'}",
        b"{\"access_token\":\"t\",\"expires_in\":01}",
        b"{\"access_token\":\"t\",\"expires_in\":NaN}",
        b"\x0C{\"access_token\":\"t\"}",
    ] {
        assert_eq!(problem(body), Malformed::NotJson, "{}", body.escape_ascii());
    }
    for body in
        [&b"{\"access_token\":\"\xFF\"}"[..], b"\xFF\xFE{\0}\0", b"{\"x\":\"\xED\xA0\x80\",\"access_token\":\"t\"}"]
    {
        assert_eq!(problem(body), Malformed::NotUtf8, "{}", body.escape_ascii());
    }
    for body in [&b""[..], b" \r\n", b"\xEF\xBB\xBF"] {
        assert_eq!(problem(body), Malformed::Empty);
    }
}

/// What a JSON parser must accept, beside a token that then counts. After the classes of the public JSON test suites.
#[test]
fn r9_r11_whatever_json_allows_is_taken() {
    for member in [
        r#""":0"#,
        r#""x":"""#,
        r#""x":[]"#,
        r#""x":[[]   ]"#,
        r#""x":{}"#,
        r#""x":{"":{}}"#,
        r#""x":[null, 1, "1", {}]"#,
        r#""x":[1,null,null,null,2]"#,
        r#""x":-0"#,
        r#""x":-0.0e-0"#,
        r#""x":0e1"#,
        r#""x":0E+1"#,
        r#""x":1E22"#,
        r#""x":1e-2"#,
        r#""x":123.456e78"#,
        r#""x":123123e100000"#,
        r#""x":-123123e100000"#,
        r#""x":0.4e00669999999999999999999999999999999999999999999999999999999999999999"#,
        r#""x":-237462374673276894279832749832423479823246327846"#,
        r#""x":0.000000000000000000000000000000000000000000000000000000000000000000000000000001"#,
        r#""x":"\u0060\u012a\u12AB""#,
        r#""x":"\uD801\udc37""#,
        r#""x":"\ud83d\ude39\ud83d\udc8d""#,
        r#""x":"\"\\\/\b\f\n\r\t""#,
        r#""x":"\\u0000""#,
        r#""x":"\\""#,
        r#""x":"\\a""#,
        r#""x":"\u0000""#,
        r#""x":"\uDBFF\uDFFE\uFFFF\uFDD0""#,
        r#""x":"a/*b*/c/*d//e""#,
        r#""x":"true""#,
        "\"x\":\"\u{7f}\u{2028}\u{2029}\u{a0}\u{e000}\"",
        "\"\u{20ac}\u{1d11e}\":\"\u{10ffff}\u{fffe}\u{feff}\"",
        "\t\"x\"\r:\n\t 1 ",
        r#""a":1,"a":2,"\u0061":3"#,
        r#""access_token\u0000":"no""#,
        r#""Access_Token":"no""#,
        r#""access_token ":"no""#,
        // Half a surrogate pair: a parser may take it, and this one does.
        r#""x":"\uDADA""#,
        r#""x":"\uD888\u1234""#,
        r#""x":"\uD800\uD800\n""#,
        r#""x":"\uDd1ea""#,
        r#""x":"\uDFAA""#,
        r#""\uDFAA":0"#,
        r#""\uD800":{"\uD800\uD800":0}"#,
    ] {
        for body in
            [format!(r#"{{{member},"access_token":"t0ken"}}"#), format!(r#"{{"access_token":"t0ken",{member}}}"#)]
        {
            let refusal = match answer(200, body.as_bytes()).outcome {
                Outcome::Granted(grant) if grant.access_token.as_bytes() == b"t0ken" => continue,
                outcome => outcome,
            };
            panic!("{body}: {refusal:?}");
        }
    }
}

/// What a JSON parser must refuse, beside a token that then does not count.
#[test]
fn r11_whatever_json_forbids_is_malformed() {
    for member in [
        r#""x""#,
        r#""x":"#,
        r#""x" 1"#,
        r#""x"::1"#,
        r#""x":1 2"#,
        r#""x",1"#,
        r#":1"#,
        r#"x:1"#,
        r#"1:1"#,
        r#"null:1"#,
        r#"'x':1"#,
        r#"[1]:1"#,
        r#""x":1,,"y":1"#,
        r#"/**/"x":1"#,
        "\"x\":1//\n",
        "#\n\"x\":1",
        r#""x":[1,]"#,
        r#""x":[,1]"#,
        r#""x":[1,,2]"#,
        r#""x":[1 2]"#,
        r#""x":["a":1]"#,
        r#""x":[1}"#,
        r#""x":{"a":1]"#,
        r#""x":{"a":1"#,
        r#""x":{"a"}"#,
        r#""x":{"a":1,}"#,
        r#""x":{,}"#,
        r#""x":{1:1}"#,
        r#""x":+1"#,
        r#""x":++1"#,
        r#""x":.5"#,
        r#""x":-.5"#,
        r#""x":1."#,
        r#""x":-1.e3"#,
        r#""x":1.e1"#,
        r#""x":-"#,
        r#""x":- 1"#,
        r#""x":-01"#,
        r#""x":012"#,
        r#""x":00"#,
        r#""x":1e"#,
        r#""x":1e+"#,
        r#""x":1eE2"#,
        r#""x":0.3e+"#,
        r#""x":1 000"#,
        r#""x":1_000"#,
        r#""x":1,000"#,
        r#""x":0x42"#,
        r#""x":0x"#,
        r#""x":1a"#,
        r#""x":1+2"#,
        r#""x":NaN"#,
        r#""x":-NaN"#,
        r#""x":Inf"#,
        r#""x":Infinity"#,
        r#""x":-Infinity"#,
        r#""x":True"#,
        r#""x":TRUE"#,
        r#""x":nul"#,
        r#""x":nulll"#,
        r#""x":truefalse"#,
        r#""x":undefined"#,
        r#""x":'1'"#,
        r#""x":`1`"#,
        r#""x":"a"#,
        r#""x":"\"#,
        r#""x":"\a""#,
        r#""x":"\v""#,
        r#""x":"\'""#,
        r#""x":"\x00""#,
        r#""x":"\0""#,
        r#""x":"\u""#,
        r#""x":"\u00""#,
        r#""x":"\u00A""#,
        r#""x":"\u{41}""#,
        r#""x":"\uqqqq""#,
        r#""x":"\U0041""#,
        r#""x":"\uD800\u""#,
        r#""x":"\uD800\u1""#,
        r#""x":"\uD834\uDd""#,
        r#""x":"\uD800\""#,
        r#""x":"\uD83D\x""#,
        "\"x\":\"\\\u{1f300}\"",
        "\"x\":\"a\nb\"",
        "\"x\":\"a\tb\"",
        "\"x\":\"a\0b\"",
        "\"x\":\"\u{1f}\"",
        "\"a\tb\":1",
        "\"x\":\u{ff11}",
        "\"x\":\u{feff}1",
        "\u{feff}\"x\":1",
        "\u{a0}\"x\":1",
        "\u{2060}\"x\":1",
        "\u{b}\"x\":1",
        "\u{c}\"x\":1",
        "\u{201c}x\u{201d}:1",
    ] {
        for body in [format!(r#"{{{member},"access_token":"t"}}"#), format!(r#"{{"access_token":"t",{member}}}"#)] {
            assert_eq!(problem(body.as_bytes()), Malformed::NotJson, "{body}");
        }
    }
    let token = r#"{"access_token":"t"}"#;
    for body in [
        format!("{token},"),
        format!("{token}]"),
        format!("{token}}}"),
        format!("{token};"),
        format!("{token}#"),
        format!("{token}//"),
        format!("{token}/**/"),
        format!("{token}{token}"),
        format!("{token}\n{token}"),
        format!("{token}\0"),
        format!("{token}\u{1a}"),
        format!("{token}\u{feff}"),
        format!("{token}\u{a0}"),
        format!("{token}null"),
        format!(",{token}"),
        format!("[{token}"),
        format!("({token})"),
        format!("callback({token})"),
        format!(")]}}',\n{token}"),
        format!("\u{1e}{token}\n"),
        format!("\u{b}{token}"),
        format!("\u{2060}{token}"),
        format!("/**/{token}"),
        "access_token=t&expires_in=3600&token_type=Bearer".to_owned(),
        "<?xml version='1.0'?><access_token>t</access_token>".to_owned(),
    ] {
        assert_eq!(problem(body.as_bytes()), Malformed::NotJson, "{body}");
    }
}

#[test]
fn r11_only_utf_8_is_read() {
    let token = r#"{"access_token":"t"}"#;
    let wide = |bytes: fn(u16) -> [u8; 2]| token.encode_utf16().flat_map(bytes).collect::<Vec<_>>();
    let widest = |bytes: fn(u32) -> [u8; 4]| token.chars().flat_map(|c| bytes(c.into())).collect::<Vec<_>>();
    // Without a byte order mark these are ASCII with zeros in between.
    for body in [wide(u16::to_le_bytes), wide(u16::to_be_bytes), widest(u32::to_le_bytes), widest(u32::to_be_bytes)] {
        assert_eq!(problem(&body), Malformed::NotJson, "{}", body.escape_ascii());
    }
    for (mark, body) in [
        (&b"\xFF\xFE"[..], wide(u16::to_le_bytes)),
        (b"\xFE\xFF", wide(u16::to_be_bytes)),
        (b"\xFF\xFE\0\0", widest(u32::to_le_bytes)),
        (b"\0\0\xFE\xFF", widest(u32::to_be_bytes)),
    ] {
        assert_eq!(problem(&[mark, &body].concat()), Malformed::NotUtf8, "{}", mark.escape_ascii());
    }
    for text in [
        &b"\x80"[..], // a continuation alone
        b"\xC3",      // cut through
        b"\xE2\x82",
        b"\xC0\xAF", // overlong
        b"\xC1\xBF",
        b"\xE0\x80\xAF",
        b"\xF0\x80\x80\xAF",
        b"\xFC\x83\xBF\xBF\xBF\xBF",
        b"\xED\xA0\x80",             // half a surrogate pair
        b"\xED\xA0\xBD\xED\xB8\x80", // a whole one (CESU-8)
        b"\xF4\x90\x80\x80",         // past U+10FFFF
        b"\xF8\x88\x80\x80\x80",
        b"\xFE",
        b"\xE9", // Latin-1
    ] {
        for name in ["x", "scope", "access_token"] {
            let body = [format!("{{\"{name}\":\"").as_bytes(), text, b"\",\"access_token\":\"t\"}"].concat();
            assert_eq!(problem(&body), Malformed::NotUtf8, "{}", body.escape_ascii());
        }
    }
    for mark in [&b"\xEF"[..], b"\xEF\xBB", b"\xEF\xBF\xBE"] {
        assert!(matches!(problem(&[mark, token.as_bytes()].concat()), Malformed::NotUtf8 | Malformed::NotJson));
    }
}

#[test]
fn r11_one_bom_is_accepted() {
    granted(answer(200, b"\xEF\xBB\xBF{\"access_token\":\"t\"}"));
    granted(answer(200, b"\xEF\xBB\xBF\n {\"access_token\":\"t\"}\r\n"));
}

#[test]
fn r12_a_repeated_known_member_is_malformed() {
    for name in ["access_token", "token_type", "expires_in", "scope", "error", "error_description", "error_uri"] {
        let body = format!(r#"{{"access_token":"t","{name}":"Bearer","{name}":"Bearer"}}"#);
        match problem(body.as_bytes()) {
            Malformed::DuplicateMember(duplicate) => assert_eq!(duplicate, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(problem(br#"{"access_token":"t","acc\u0065ss_token":"t"}"#), Malformed::DuplicateMember("access_token"));
    for (name, again) in [
        ("access_token", r"access\u005ftoken"),
        ("access_token", r"\u0061\u0063\u0063\u0065\u0073\u0073\u005F\u0074\u006F\u006B\u0065\u006E"),
        ("expires_in", r"expires\u005Fin"),
        ("error", r"\u0065rror"),
    ] {
        let body = format!(r#"{{"access_token":"t","{name}":"1","{again}":"1"}}"#);
        assert!(matches!(problem(body.as_bytes()), Malformed::DuplicateMember(_)), "{body}");
    }
    assert_eq!(problem(br#"{"access_token":"t","scope":null,"scope":null}"#), Malformed::DuplicateMember("scope"));
    let refusal = refused(answer(403, br#"{"error":"invalid_client","error":"invalid_client"}"#));
    assert_eq!((refusal.class, refusal.error), (Class::Transient, None));
    assert_eq!(refusal.problem, Some(Malformed::DuplicateMember("error")));
}

#[test]
fn r13_an_access_token_that_cannot_be_used_is_malformed() {
    let fault = |token: &str| match problem(format!(r#"{{"access_token":{token}}}"#).as_bytes()) {
        Malformed::AccessToken(fault) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(problem(b"{}"), Malformed::AccessToken(TokenFault::Absent));
    for token in ["null", "1", "true", "[]", r#"{"t":1}"#, r#"["t"]"#] {
        assert_eq!(fault(token), TokenFault::NotAString, "{token}");
    }
    assert_eq!(fault(r#""""#), TokenFault::Empty);
    for token in [
        r#"" ""#,
        r#""a b""#,
        r#""a\r\nb""#,
        r#""\u0000""#,
        r#""\u007f""#,
        "\"\u{e9}\"",
        r#""\ud83d\ude00""#,
        r#""\ud800""#,
    ] {
        assert_eq!(fault(token), TokenFault::Character, "{token}");
    }
    assert_eq!(fault(&format!(r#""{}""#, "a".repeat(MAX_ACCESS_TOKEN + 1))), TokenFault::TooLong);
    let longest = format!(r#"{{"access_token":"{}"}}"#, "a".repeat(MAX_ACCESS_TOKEN));
    assert_eq!(granted(answer(200, longest.as_bytes())).0.access_token.as_bytes().len(), MAX_ACCESS_TOKEN);
}

#[test]
fn r13_escapes_in_an_access_token_are_read() {
    let token = |raw: &str| {
        let body = format!(r#"{{"access_token":"{raw}"}}"#);
        granted(answer(200, body.as_bytes())).0.access_token.as_bytes().to_vec()
    };
    assert_eq!(token(r"a\/b\u002bc\u002Bd=="), b"a/b+c+d==");
    assert_eq!(token(r#"\"\\\\u0041"#), br#""\\u0041"#);
    assert_eq!(token(r"\u0021~"), b"!~");
}

proptest! {
    #[test]
    fn r13_a_granted_token_is_what_the_server_wrote(token in ".{0,40}", escape in any::<bool>()) {
        let escaped: String = token.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let body = serde_json::json!({ "access_token": token }).to_string();
        let body = if escape { format!(r#"{{"access_token":"{escaped}"}}"#) } else { body };
        let usable = !token.is_empty() && token.bytes().all(|byte| (0x21..=0x7E).contains(&byte));
        match answer(200, body.as_bytes()).outcome {
            Outcome::Granted(grant) => prop_assert!(usable && grant.access_token.as_bytes() == token.as_bytes()),
            Outcome::Refused(_) => prop_assert!(!usable),
        }
    }

    #[test]
    fn r18_text_with_escapes_is_read_as_serde_json_reads_it(text in "[ -~]{0,100}|(\\PC|[\"\\\\\n])*") {
        let body = serde_json::json!({ "error": "e", "error_description": text }).to_string();
        let error = refused(answer_with(400, &[], body.as_bytes(), &[])).error.unwrap();
        let allowed = |byte: &u8| matches!(byte, 0x20..=0x21 | 0x23..=0x5B | 0x5D..=0x7E);
        let expected: Vec<u8> = text.bytes().filter(allowed).take(256).collect();
        prop_assert_eq!(error.description.unwrap_or_default().into_bytes(), expected);
    }
}

#[test]
fn r14_bearer_in_any_case_or_absent() {
    for kind in [r#""Bearer""#, r#""bearer""#, r#""BEARER""#, r#""b\u0065arer""#] {
        let body = format!(r#"{{"access_token":"t","expires_in":60,"token_type":{kind}}}"#);
        assert_eq!(granted(answer(200, body.as_bytes())).1, []);
    }
    let (_, diagnostics) = granted(answer(200, br#"{"access_token":"t","expires_in":60}"#));
    assert_eq!(diagnostics, [Diagnostic::TokenTypeMissing]);
}

#[test]
fn r14_any_other_token_type_is_refused() {
    for kind in [r#""mac""#, r#""DPoP""#, r#""""#, r#""Bearer ""#, "null", "1", r#"["Bearer"]"#] {
        let body = format!(r#"{{"access_token":"t","token_type":{kind}}}"#);
        assert_eq!(problem(body.as_bytes()), Malformed::TokenType, "{kind}");
    }
}

#[test]
fn r15_an_integer_is_the_value() {
    assert_eq!(seconds("1"), 1);
    assert_eq!(seconds("600"), 600);
    assert_eq!(seconds("3600"), 3600);
    assert_eq!(seconds("86400"), 86400);
}

#[test]
fn r15_digits_in_a_string_are_the_value() {
    assert_eq!(seconds(r#""3600""#), 3600);
    assert_eq!(seconds(r#""0003600""#), 3600);
    assert_eq!(seconds(r#""\u0033600""#), 3600);
    assert_eq!(seconds(r#""0""#), 0);
}

#[test]
fn r15_a_fraction_or_exponent_is_floored() {
    assert_eq!(seconds("3600.0"), 3600);
    assert_eq!(seconds("3600.9"), 3600);
    assert_eq!(seconds("3600.99999999999999999999999"), 3600);
    assert_eq!(seconds("1e3"), 1000);
    assert_eq!(seconds("3.6E+3"), 3600);
    assert_eq!(seconds("36009e-1"), 3600);
    assert_eq!(seconds("0.5"), 0);
    assert_eq!(seconds("1e-400"), 0);
    for (expires_in, expected) in [
        ("36e2", 3600),
        ("36E02", 3600),
        ("3.6e3", 3600),
        ("3600.9e0", 3600),
        ("3600.0e-0", 3600),
        ("0.36e4", 3600),
        ("0.0000036e9", 3600),
        ("360000000000000000000000e-20", 3600),
        ("1e-1", 0),
        ("10e-1", 1),
        ("19e-1", 1),
        ("0e9", 0),
        ("0.0e-9", 0),
        ("1e0", 1),
        ("1.9e0", 1),
        // No float is between these and the next whole second.
        ("3599.9999999999999999999e0", 3599),
        ("3.5999999999999999999999e3", 3599),
        ("35999999999999999999999e-19", 3599),
        ("0.99999999999999999999e0", 0),
    ] {
        assert_eq!(seconds(expires_in), expected, "{expires_in}");
    }
}

#[test]
fn r15_zero_or_negative_serves_only_those_who_wait() {
    for expires_in in ["0", "0.0", "-0", "-0.0", "-1", "-3600", "-1e400", "-1e-400", "0e400", "-99999999999999999999"] {
        assert_eq!(seconds(expires_in), 0, "{expires_in}");
    }
}

#[test]
fn r15_r23_above_the_cap_is_the_cap() {
    for expires_in in [
        "86401",
        "1e400",
        "1e5",
        "18446744073709551616",
        "99999999999999999999",
        "99999999999999999999.5",
        r#""99999999999999999999""#,
        r#""86401""#,
        "9223372036854775807",
    ] {
        assert_eq!(lifetime(expires_in), (MAX_LIFETIME, vec![Diagnostic::LifetimeCapped]), "{expires_in}");
    }
    let huge = "9".repeat(60_000);
    assert_eq!(lifetime(&huge).0, MAX_LIFETIME);
    assert_eq!(lifetime(&format!("1e{huge}")).0, MAX_LIFETIME);
    assert_eq!(seconds(&format!("1e-{huge}")), 0);
    assert_eq!(seconds("86400.9"), 86400);
}

#[test]
fn r15_anything_else_is_300_seconds_with_a_diagnostic() {
    assert_eq!(lifetime("null"), (DEFAULT_LIFETIME, vec![Diagnostic::ExpiresInMissing]));
    let (grant, diagnostics) = granted(answer(200, br#"{"access_token":"t","token_type":"Bearer"}"#));
    assert_eq!((grant.lifetime, diagnostics), (Duration::from_secs(300), vec![Diagnostic::ExpiresInMissing]));
    for expires_in in [
        r#""""#,
        r#"" 3600 ""#,
        r#""+5""#,
        r#""-5""#,
        r#""3600.0""#,
        r#""1e3""#,
        r#""0x10""#,
        r#""never""#,
        "\"\u{663}\"",
        r#""null""#,
        r#""3600 ""#,
        r#""\t3600""#,
        r#""36 00""#,
        r#""3,600""#,
        r#""3_600""#,
        r#""3600s""#,
        r#""PT1H""#,
        r#""-0""#,
        r#""3600,0""#,
        r#""2026-01-01T00:00:00Z""#,
        "\"3600\u{a0}\"",
        "\"\u{ff13}600\"",
        r#""3600\u0000""#,
        "false",
        "[]",
        "{}",
        "true",
        "[3600]",
        r#"{"seconds":3600}"#,
    ] {
        assert_eq!(
            lifetime(expires_in),
            (Duration::from_secs(300), vec![Diagnostic::ExpiresInUnusable]),
            "{expires_in}"
        );
    }
}

proptest! {
    #[test]
    fn r15_no_lifetime_is_above_the_cap(expires_in in "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?") {
        prop_assert!(lifetime(&expires_in).0 <= MAX_LIFETIME);
    }

    #[test]
    fn r15_floor_agrees_with_decimal_arithmetic(whole in 0u64..100_000, thousandths in 0u64..1000, shift in 0usize..8) {
        let expected = whole.min(86400);
        let plain = format!("{whole}.{thousandths:03}");
        prop_assert_eq!(lifetime(&plain).0.as_secs(), expected);
        let digits = format!("{whole}{thousandths:03}{}", "0".repeat(shift)).trim_start_matches('0').to_owned();
        let digits = if digits.is_empty() { "0".to_owned() } else { digits };
        prop_assert_eq!(lifetime(&format!("{digits}e-{}", 3 + shift)).0.as_secs(), expected);
    }
}

#[test]
fn r16_an_object_with_a_string_error_is_an_oauth_error_whatever_the_status() {
    let body = br#"{"access_token":"t","token_type":"Bearer","expires_in":60,"error":"invalid_scope"}"#;
    for status in [200, 201, 301, 400, 401, 403, 418, 500, 503] {
        let refusal = refused(answer(status, body));
        assert_eq!(refusal.error.unwrap().error, "invalid_scope", "{status}");
        assert_eq!(refusal.problem, None);
        assert_eq!(refusal.status, status);
    }
    assert_eq!(refused(answer(200, br#"{"access_token":"t","error":""}"#)).error.unwrap().error, "");
}

#[test]
fn r16_an_error_that_is_not_a_string_is_none() {
    for error in ["null", "false", "1", "[]", r#"{"code":"invalid_client"}"#] {
        let body = format!(r#"{{"access_token":"t","error":{error}}}"#);
        granted(answer(200, body.as_bytes()));
        assert_eq!(refused(answer(400, body.as_bytes())).error, None);
    }
}

#[test]
fn r16_a_token_counts_only_with_a_2xx() {
    let body = r#"{"access_token":"t","token_type":"Bearer","expires_in":60}"#;
    for (status, expected) in [
        (100, Class::Transient),
        (302, Class::Configuration),
        (400, Class::Configuration),
        (403, Class::Transient),
        (429, Class::Throttled),
        (500, Class::Transient),
    ] {
        assert_eq!(class(status, body), expected, "{status}");
    }
}

#[test]
fn r17_429_and_503_throttle_whatever_the_body_says() {
    for body in
        ["", "<html>", r#"{"error":"invalid_client"}"#, r#"{"access_token":"t"}"#, "[", r#"{"error":"x","error":"y"}"#]
    {
        for status in [429, 503] {
            assert_eq!(class(status, body), Class::Throttled, "{status} {body}");
        }
    }
    let refusal = refused(answer(429, br#"{"error":"invalid_client"}"#));
    assert_eq!(refusal.error.as_ref().unwrap().error, "invalid_client");
    assert_eq!(refusal.to_string(), "rate limited (HTTP 429, invalid_client)");
}

#[test]
fn r17_final_errors_are_configuration_below_500() {
    for error in ["invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type", "invalid_request"]
    {
        let body = format!(r#"{{"error":"{error}"}}"#);
        for status in [100, 200, 299, 302, 400, 401, 403, 408, 418, 499] {
            assert_eq!(class(status, &body), Class::Configuration, "{status} {error}");
        }
        for status in [500, 502, 504, 599, 600, 999] {
            assert_eq!(class(status, &body), Class::Transient, "{status} {error}");
        }
    }
}

#[test]
fn r17_other_errors_are_configuration_with_a_4xx() {
    for error in ["temporarily_unavailable", "invalid_grant", "INVALID_CLIENT", "invalid_client ", ""] {
        let body = format!(r#"{{"error":"{error}"}}"#);
        for status in [400, 401, 403, 408, 499] {
            assert_eq!(class(status, &body), Class::Configuration, "{status} {error}");
        }
        for status in [100, 200, 302, 399, 500, 502, 600] {
            assert_eq!(class(status, &body), Class::Transient, "{status} {error}");
        }
    }
}

#[test]
fn r17_without_an_error_the_status_decides() {
    for body in ["", "<html>", "{}", r#"{"message":"Not Found"}"#, "[]", "\u{feff}"] {
        for status in [300, 301, 302, 303, 304, 307, 308, 399, 400, 401, 404, 405] {
            assert_eq!(class(status, body), Class::Configuration, "{status} {body}");
        }
        for status in [100, 200, 204, 402, 403, 406, 408, 410, 418, 499, 500, 501, 502, 504, 599, 600, 999] {
            assert_eq!(class(status, body), Class::Transient, "{status} {body}");
        }
    }
    assert_eq!(refused(answer(400, b"<html>")).problem, None);
    assert_eq!(refused(answer(204, b"")).problem, Some(Malformed::Empty));
}

#[test]
fn r17_a_3xx_names_where_the_endpoint_moved() {
    let moved = |location: &str| {
        let refusal = refused(answer_with(301, &[(LOCATION, location.as_bytes())], b"", &[SECRET.as_bytes()]));
        assert_eq!(refusal.class, Class::Configuration);
        refusal.location
    };
    let shown = |location: &str| moved(location).unwrap();
    assert_eq!(
        shown("https://acme.api-se.norce.tech/identity/1.0/connect/token"),
        "https://acme.api-se.norce.tech/identity/1.0/connect/token"
    );
    assert_eq!(shown("https://user:pass@example.com:8443/token?code=1#top"), "https://example.com:8443/token");
    assert_eq!(shown("//user@example.com/token"), "//example.com/token");
    assert_eq!(shown("https:/user:p@ss@example.com/token"), "https:/example.com/token");
    assert_eq!(shown("https:user:pass@example.com/token"), "https:example.com/token");
    assert_eq!(shown(r"https:\\user:pass@example.com/token"), "https:example.com/token");
    assert_eq!(shown("user:pass@example.com/token"), "user:example.com/token");
    assert_eq!(shown("u@ser:pass@example.com/token"), "example.com/token");
    assert_eq!(shown("https://\u{e9}user@example.com/a@b?x"), "https://example.com/a@b");
    assert_eq!(shown("/login?ReturnUrl=x"), "/login");
    assert_eq!(shown("/a/b:c@d"), "/a/b:c@d");
    assert_eq!(shown("token"), "token");
    assert_eq!(shown(&format!("https://example.com/{SECRET}/x")), "https://example.com/[redacted]/x");
    assert_eq!(shown(&format!("/{}", "a".repeat(400))).len(), 256);
    for nothing in ["", "?a", "#a", "\u{e9}"] {
        assert_eq!(moved(nothing), None, "{nothing}");
    }
    assert_eq!(refused(answer(301, b"")).location, None);
    assert_eq!(refused(answer_with(400, &[(LOCATION, b"https://example.com")], b"", &[])).location, None);
}

#[test]
fn r17_r18_display_says_what_to_check() {
    let display = |status, body: &str| refused(answer(status, body.as_bytes())).to_string();
    assert_eq!(
        display(401, r#"{"error":"invalid_client","error_description":"no \"such\" client\n"}"#),
        "invalid_client (HTTP 401): check the client id and the client secret (the server says: no such client)"
    );
    assert_eq!(display(400, r#"{"error":"invalid_scope"}"#), "invalid_scope (HTTP 400): check the scope");
    assert_eq!(
        display(400, r#"{"error":"unauthorized_client"}"#),
        "unauthorized_client (HTTP 400): check whether the client may use the client_credentials grant"
    );
    assert_eq!(display(400, r#"{"error":"invalid_request"}"#), "invalid_request (HTTP 400): check the token URL");
    assert_eq!(
        display(400, r#"{"error":"unsupported_grant_type"}"#),
        "unsupported_grant_type (HTTP 400): check the token URL"
    );
    assert_eq!(display(400, r#"{"error":"odd"}"#), "odd (HTTP 400): check the client's registration");
    assert_eq!(
        display(400, r#"{"error":"\""}"#),
        "an error without a name (HTTP 400): check the client's registration"
    );
    assert_eq!(display(500, r#"{"error":"invalid_client"}"#), "invalid_client (HTTP 500)");
    assert_eq!(display(404, "<html>"), "the token endpoint answered HTTP 404 and no token: check the token URL");
    assert_eq!(
        display(400, ""),
        "the token endpoint answered HTTP 400 and no token: check the token URL, the client id, the client secret and the scope"
    );
    assert_eq!(display(502, "<html>Bad Gateway</html>"), "the token endpoint answered HTTP 502 and no token");
    assert_eq!(display(200, "<html>"), "the token endpoint answered HTTP 200 and no token: the answer is not JSON");
    assert_eq!(display(200, "{}"), "the token endpoint answered HTTP 200 and no token: the access_token is absent");
    assert_eq!(display(503, ""), "told to wait (HTTP 503)");
    let moved = refused(answer_with(308, &[(LOCATION, b"https://example.com/token")], b"", &[]));
    assert_eq!(
        moved.to_string(),
        "the token endpoint moved (HTTP 308) to https://example.com/token: check the token URL"
    );
}

#[test]
fn r18_texts_are_cut_and_filtered() {
    let long = "a".repeat(1000);
    let body = format!(r#"{{"error":"{long}","error_description":"{long}","error_uri":"{long}"}}"#);
    let error = refused(answer(400, body.as_bytes())).error.unwrap();
    assert_eq!((error.error.len(), error.description.unwrap().len(), error.uri.unwrap().len()), (64, 256, 256));

    let body = r#"{"error":"a\"b\\c\u0000d\u00e9 e","error_description":"x\ty\u007fz !~","error_uri":"https://x/\"\\ a?b#c\u00e9"}"#;
    let error = refused(answer(400, body.as_bytes())).error.unwrap();
    assert_eq!(error.error, "abcd e");
    assert_eq!(error.description.as_deref(), Some("xyz !~"));
    assert_eq!(error.uri.as_deref(), Some("https://x/a?b#c"));

    let error = refused(answer(400, br#"{"error":"e","error_description":"\"\"","error_uri":7}"#)).error.unwrap();
    assert_eq!((error.description, error.uri), (None, None));
}

/// The description that is left of `text` when `secret` is cleared from it.
fn described(text: &str, secret: &str) -> String {
    let body = serde_json::json!({ "error": "e", "error_description": text }).to_string();
    let refusal = refused(answer_with(400, &[], body.as_bytes(), &[b"", secret.as_bytes()]));
    refusal.error.unwrap().description.unwrap_or_default()
}

#[test]
fn r18_the_secret_and_live_tokens_are_cleared() {
    assert_eq!(described(&format!("no {SECRET}, {SECRET}."), SECRET), "no [redacted], [redacted].");
    assert_eq!(described("no C4nary-s here", SECRET), "no [redacted] here");
    assert_eq!(described("no C4nary- here", SECRET), "no C4nary- here");
    assert_eq!(described("23456789 at the end 3456789", SECRET), "[redacted] at the end 3456789");
    assert_eq!(described(&format!("{SECRET}{SECRET}"), SECRET), "[redacted]");
    // Cut through by the limit of 256: clearing comes first.
    assert_eq!(described(&format!("{}{SECRET}", "x".repeat(250)), SECRET), format!("{}[redac", "x".repeat(250)));
    // Shorter than 8 bytes: the whole.
    assert_eq!(described("pw1 pw pw12", "pw1"), "[redacted] pw [redacted]2");

    let live: [&[u8]; 2] = [SECRET.as_bytes(), b"eyJhbGciOiJSUzI1NiJ9"];
    let body = br#"{"error":"eyJhbGciOiJSUzI1NiJ9","error_uri":"https://x/?t=eyJhbGciOiJS","error_description":"C4nary-s3cret-0123456789"}"#;
    let error = refused(answer_with(400, &[], body, &live)).error.unwrap();
    assert_eq!(error.error, "[redacted]");
    assert_eq!(error.uri.as_deref(), Some("https://x/?t=[redacted]"));
    assert_eq!(error.description.as_deref(), Some("[redacted]"));
}

#[test]
fn r18_the_secret_is_known_in_its_encoded_spellings() {
    let secret = "a+b c/d\u{e9}=&%\"f\\g";
    for spelling in [
        "a%2Bb+c%2Fd%C3%A9%3D%26%25%22f%5Cg",
        "a%2bb%20c%2fd%c3%a9%3d%26%25%22f%5cg",
        "a+b%20c/d%C3%A9=&%25%22f%5Cg",
        "a+b c/d\u{e9}=&%\"f\\g",
    ] {
        assert_eq!(described(&format!("<{spelling}>"), secret), "<[redacted]>", "{spelling}");
    }
    // Without what a text cannot show.
    assert_eq!(described("<p\u{e4}ssw\u{f6}rd>", "p\u{e4}ssw\u{f6}rd"), "<[redacted]>");
    // Part of the form-encoded spelling.
    assert_eq!(described("<%C3%A9%C3>", "\u{e9}\u{e9}\u{e9}\u{e9}"), "<[redacted]>");
    // A plus for the space, and the rest as it is.
    assert_eq!(described("<abc+def:ghi>", "abc def:ghi"), "<[redacted]>");
}

#[test]
fn r18_a_secret_spelled_like_the_mark_leaves_nothing() {
    assert_eq!(described("[redacted] and pw12345678", "redacted"), "");
    assert_eq!(described("xd]hello!x pw12345678", "d]hello!"), "x[redacted]x pw12345678");
    assert_eq!(described("e", "e"), "");
}

#[test]
fn r18_the_class_is_taken_before_anything_is_cleared() {
    let refusal = refused(answer_with(400, &[], br#"{"error":"invalid_client"}"#, &[b"invalid_client"]));
    assert_eq!((refusal.class, refusal.error.unwrap().error.as_str()), (Class::Configuration, "[redacted]"));
}

#[test]
fn r18_a_token_beside_an_error_is_not_shown_by_it() {
    let body = br#"{"access_token":"f00ba\u0072-token","error":"odd","error_description":"not f00bar-token"}"#;
    let error = refused(answer(400, body)).error.unwrap();
    assert_eq!(error.description.as_deref(), Some("not [redacted]"));
    // A token of a few letters is a stand-in, and would take the letters out of every word.
    let (grant, _) = granted(answer(200, br#"{"access_token":"t","scope":"production"}"#));
    assert_eq!(grant.scope.as_deref(), Some("production"));
}

#[test]
fn r19_the_granted_scope_is_kept_as_the_server_names_it() {
    let scope = |scope: &str| {
        let body = format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":60,"scope":{scope}}}"#);
        let (grant, diagnostics) = granted(answer(200, body.as_bytes()));
        (grant.scope, diagnostics)
    };
    assert_eq!(scope(r#""Staging lab""#), (Some("Staging lab".into()), vec![]));
    assert_eq!(scope(r#""l\"a\u00e9b""#), (Some("lab".into()), vec![]));
    assert_eq!(scope(r#""""#), (None, vec![]));
    assert_eq!(scope("null"), (None, vec![]));
    assert_eq!(scope(r#"["lab"]"#), (None, vec![Diagnostic::ScopeUnreadable]));
    let (long, _) = scope(&format!(r#""{}""#, "scope ".repeat(1000)));
    assert_eq!(long.unwrap(), "scope ".repeat(1000)[..1019]);
    assert_eq!(scope(&format!(r#""{} x""#, "a".repeat(1024))).0.unwrap(), "a".repeat(1024));
    assert_eq!(scope(&format!(r#""{}""#, "a".repeat(1024))).0.unwrap(), "a".repeat(1024));
    assert_eq!(scope(&format!(r#""{}""#, "a".repeat(1025))).0, None);
    assert_eq!(scope(&format!(r#""{SECRET}""#)).0.as_deref(), Some("[redacted]"));
}

#[test]
fn r58_debug_shows_neither_token_nor_body_nor_their_length() {
    let short = answer(200, br#"{"access_token":"f00bar-token"}"#);
    let long = answer(200, br#"{"access_token":"f00bar-token-f00bar-token"}"#);
    assert_eq!(format!("{short:?}"), format!("{long:?}"));
    assert!(!format!("{short:?}").contains("f00bar"));
    let body = ResponseBody::try_from(&b"C4nary-s3cret"[..]).unwrap();
    assert_eq!(format!("{body:?}"), "ResponseBody([redacted])");
    assert_eq!(format!("{:?}", ResponseBody::new()), "ResponseBody([redacted])");
    let (grant, _) = granted(answer(200, br#"{"access_token":"f00bar-token"}"#));
    assert_eq!(format!("{:?}", grant.access_token), "AccessToken([redacted])");
}

#[test]
fn r10_r15_what_was_odd_about_an_answer_is_said_in_words() {
    assert_eq!(BodyTooLarge.to_string(), "the token endpoint's answer is longer than 64 KiB");
    let (_, diagnostics) = granted(answer(200, br#"{"access_token":"t","scope":7}"#));
    let said: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "the answer has no token_type; Bearer is assumed",
            "the answer has no expires_in; 300 s are assumed",
            "the answer's scope is not a string",
        ]
    );
}

#[test]
fn r58_no_malformed_answer_shows_what_it_holds() {
    for body in [
        SECRET.to_owned(),
        format!(r#""{SECRET}""#),
        format!(r#"{{"{SECRET}":}}"#),
        format!(r#"{{"access_token":["{SECRET}"]}}"#),
        format!(r#"{{"access_token":"{SECRET} "}}"#),
        format!(r#"{{"access_token":"t","token_type":"{SECRET}"}}"#),
        format!(r#"{{"access_token":"{SECRET}","access_token":"{SECRET}"}}"#),
    ] {
        for status in [200, 400, 500] {
            let answer = answer_with(status, &[], body.as_bytes(), &[]);
            let shown = format!("{answer:?} {}", refused(answer_with(status, &[], body.as_bytes(), &[])));
            assert!(!shown.contains("C4nary"), "{shown}");
        }
    }
}

/// Whether `text` shows 8 bytes of the secret in a row, or all of a shorter one.
fn shows(text: &str, secret: &[u8]) -> bool {
    let length = secret.len().min(8);
    !secret.is_empty() && secret.windows(length).any(|part| text.as_bytes().windows(length).any(|bytes| bytes == part))
}

proptest! {
    #[test]
    fn r18_r58_no_text_shows_a_secret(
        secret in "[a-c\\[\\]]{1,12}|[ -~]{1,40}|\\PC{1,20}|[a-z\"\\\\]{8,16}",
        pieces in prop::collection::vec((0u8..6, "[a-c ]{0,6}|\\PC{0,6}|redacted", any::<prop::sample::Index>()), 0..8),
    ) {
        let form = serde_urlencoded::to_string([("", secret.as_str())]).unwrap()[1..].to_owned();
        let percent: String = secret.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let mut text = String::new();
        for (spelling, between, at) in pieces {
            let part: String = secret.chars().skip(at.index(secret.chars().count())).collect();
            text += [&secret, &form, &percent, &part, "", "%"][usize::from(spelling)];
            text += &between;
        }
        let body = serde_json::json!({ "error": text, "error_description": text, "error_uri": text, "scope": text });
        let secrets = [secret.as_bytes()];
        let location = HeaderValue::from_bytes(text.as_bytes()).ok();
        let mut response = Response::builder().status(302).body(ResponseBody::try_from(body.to_string().as_bytes()).unwrap()).unwrap();
        location.map(|location| response.headers_mut().insert(LOCATION, location));
        let refusal = refused(read_response(&response, &secrets, Duration::ZERO));
        let error = refusal.error.unwrap();
        for text in [Some(error.error), error.description, error.uri, refusal.location].into_iter().flatten() {
            prop_assert!(!shows(&text, secret.as_bytes()), "{text}");
            if form.len() >= 8 {
                prop_assert!(!shows(&text, form.as_bytes()), "{text}");
            }
        }
        let body = serde_json::json!({ "access_token": "t", "scope": text }).to_string();
        let (grant, _) = granted(answer_with(200, &[], body.as_bytes(), &secrets));
        prop_assert!(!shows(&grant.scope.unwrap_or_default(), secret.as_bytes()));
    }

    #[test]
    fn r18_a_text_without_the_secret_is_left_alone(text in "[g-z ]{0,256}") {
        prop_assert_eq!(described(&text, "0123456789abcdef"), text);
    }

    #[test]
    fn r17_r65_any_answer_has_a_class(
        status in 100u16..1000,
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[{}\\[\\]\":,\\\\ueE0-9.+-]{0,60}".prop_map(String::into_bytes),
            "\\{(\"(access_token|error|expires_in|scope|token_type)\":(\"(Bearer|[a-z0-9]{0,4})\"|-?[0-9]{1,3}|null),?){0,3}\\}?"
                .prop_map(String::into_bytes),
        ],
        fields in prop::collection::vec(field_bytes(40), 4),
        secret in prop::collection::vec(any::<u8>(), 0..20),
        unix_now in any::<u64>(),
    ) {
        let mut response = Response::new(ResponseBody::try_from(&body[..]).unwrap());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in [RETRY_AFTER, DATE, LOCATION, CONTENT_ENCODING].into_iter().zip(&fields) {
            response.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
        }
        let answer = read_response(&response, &[&secret], Duration::from_secs(unix_now));
        match answer.outcome {
            Outcome::Granted(grant) => {
                prop_assert!((200..300).contains(&status) && status != 429);
                prop_assert!(grant.lifetime <= MAX_LIFETIME && !grant.access_token.as_bytes().is_empty());
            }
            Outcome::Refused(refusal) => {
                prop_assert_eq!(refusal.class == Class::Throttled, status == 429 || status == 503);
                prop_assert!(status < 500 || refusal.class != Class::Configuration);
                prop_assert!(!refusal.to_string().is_empty());
            }
        }
    }
}

#[test]
fn r65_reading_is_linear_in_the_answer_and_the_secrets() {
    // Quadratic work on these would take minutes.
    let long = "ab".repeat(MAX_ACCESS_TOKEN / 2);
    let text = "ab%61b".repeat(10_000);
    let body = format!(r#"{{"error":"e","error_description":"{text}"}}"#);
    let secrets: Vec<&[u8]> = vec![long.as_bytes(); 8];
    let error = refused(answer_with(400, &[], body.as_bytes(), &secrets)).error.unwrap();
    assert_eq!(error.description.as_deref(), Some("[redacted]"));
}

/// R61: these have none of the traits that would let a secret be compared, printed or stored. A type that had one would make the
/// call ambiguous, and this file would not compile.
#[test]
fn r61_secret_types_cannot_be_compared_printed_or_serialized() {
    trait Without<Marker> {
        fn holds() {}
    }
    impl<T: ?Sized> Without<()> for T {}
    struct Compared;
    impl<T: PartialEq> Without<Compared> for T {}
    struct Printed;
    impl<T: std::fmt::Display> Without<Printed> for T {}
    struct Stored;
    impl<T: serde::Serialize> Without<Stored> for T {}
    <AccessToken as Without<_>>::holds();
    <ResponseBody as Without<_>>::holds();
}

// ---- Retry-After --------------------------------------------------------------------------------------------------------

/// Sun, 06 Nov 1994 08:49:37 GMT.
const UNIX: Duration = Duration::from_secs(784_111_777);

fn wait(fields: &[&str]) -> RetryAfter {
    retry_after(&headers(RETRY_AFTER, fields), UNIX)
}

fn read(seconds: u64) -> RetryAfter {
    RetryAfter { wait: Some(Duration::from_secs(seconds)), unreadable: false }
}

#[test]
fn r31_digits_are_seconds() {
    assert_eq!(wait(&["20"]), read(20));
    assert_eq!(wait(&[" \t020 "]), read(20));
    assert_eq!(wait(&["0"]), read(0));
    assert_eq!(wait(&["000"]), read(0));
    assert_eq!(wait(&["00000000000000000000000000000000020"]), read(20));
    assert_eq!(wait(&["\t20"]), read(20));
    assert_eq!(wait(&[]), RetryAfter { wait: None, unreadable: false });
}

#[test]
fn r31_the_three_http_dates_are_understood() {
    assert_eq!(wait(&["Sun, 06 Nov 1994 08:50:37 GMT"]), read(60));
    assert_eq!(wait(&["Sunday, 06-Nov-94 08:50:37 GMT"]), read(60));
    assert_eq!(wait(&["Sun Nov  6 08:50:37 1994"]), read(60));
    assert_eq!(wait(&[" Sun, 06 Nov 1994 08:50:37 GMT\t"]), read(60));
    assert_eq!(wait(&["Sun Nov 06 08:50:37 1994"]), read(60));
    assert_eq!(wait(&["Mon, 07 Nov 1994 00:00:00 GMT"]), read(3600));
    assert_eq!(wait(&["Friday, 31-Dec-99 23:59:59 GMT"]), read(3600));
}

#[test]
fn r31_what_is_neither_is_ignored_with_a_diagnostic() {
    for field in [
        "+1",
        "-1",
        "1.0",
        "0x10",
        "1, 2",
        "1,",
        "",
        " ",
        "1 2",
        "1s",
        "PT5S",
        "1e3",
        "\u{663}",
        "\u{e9}",
        "Sun, 06 Nov 1994 08:50:37 UTC",
        "Sun, 06 Nov 1994 08:50:60 GMT",
        "Mon, 06 Nov 1994 08:50:37 GMT",
        "Sun, 31 Feb 1994 08:50:37 GMT",
        "Thu, 01 Jan 1969 00:00:00 GMT",
        "Sun, 06 Nov 1994 08:50:37 GMT, 5",
        "1994-11-06T08:50:37Z",
        "-0",
        "+0",
        "1,000",
        "1_000",
        "30;q=1",
        "\"30\"",
        "30.",
        ".5",
        "0b1",
        "Infinity",
        "NaN",
        "\u{ff13}0",
        "3\u{a0}0",
        "5, 30",
        "Sun, 06 nov 1994 08:50:37 GMT",
        "sun, 06 Nov 1994 08:50:37 GMT",
        "Sun, 06 Nov 1994 08:50:37 gmt",
        "Sun, 06 Nov 1994 08:50:37",
        "Sun, 06 Nov 1994 08:50:37 +0000",
        "Sun, 06 Nov 1994 08:50:37 EST",
        "Sun, 6 Nov 1994 08:50:37 GMT",
        "Sun, 06 Nov 94 08:50:37 GMT",
        "Sun 06 Nov 1994 08:50:37 GMT",
        "06 Nov 1994 08:50:37 GMT",
        "Sun, 06 Nov 1994 24:50:37 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06-Nov-94 08:50:37 GMT",
        "784111837 GMT",
    ] {
        assert_eq!(wait(&[field]), RetryAfter { wait: None, unreadable: true }, "{field}");
    }
    let answer = answer_with(429, &[(RETRY_AFTER, b"+1")], b"", &[]);
    assert_eq!((answer.retry_after, answer.diagnostics), (None, vec![Diagnostic::RetryAfterUnreadable]));
}

#[test]
fn r31_of_several_fields_the_largest_valid_counts() {
    assert_eq!(wait(&["5", "30", "7"]), read(30));
    assert_eq!(wait(&["5", "Sun, 06 Nov 1994 08:50:37 GMT"]), read(60));
    assert_eq!(wait(&["Sun, 06 Nov 1994 08:50:37 GMT", "90"]), read(90));
    let found = RetryAfter { wait: Some(Duration::from_secs(5)), unreadable: true };
    assert_eq!(wait(&["+99", "5"]), found);
    assert_eq!(wait(&["5", "+99"]), found);
}

#[test]
fn r32_a_wait_saturates_at_an_hour() {
    assert_eq!(wait(&["3599"]), read(3599));
    assert_eq!(wait(&["3600"]), read(3600));
    for field in ["3601", "18446744073709551615", "18446744073709551616", &"9".repeat(10_000)] {
        assert_eq!(wait(&[field]), read(3600));
    }
    assert_eq!(wait(&["Sun, 06 Nov 2044 08:50:37 GMT"]), read(3600));
    assert_eq!(MAX_RETRY_AFTER, Duration::from_secs(3600));
}

#[test]
fn r33_a_date_is_measured_against_the_answers_own_date() {
    let mut fields = headers(RETRY_AFTER, &["Sun, 06 Nov 1994 08:50:37 GMT"]);
    fields.insert(DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:50:07 GMT"));
    for unix_now in [Duration::ZERO, UNIX, Duration::MAX] {
        assert_eq!(retry_after(&fields, unix_now), read(30));
    }
    fields.insert(DATE, HeaderValue::from_static("today"));
    assert_eq!(retry_after(&fields, UNIX), read(60));
    fields.append(DATE, HeaderValue::from_static("Sunday, 06-Nov-94 08:50:27 GMT"));
    assert_eq!(retry_after(&fields, UNIX), read(10));
}

#[test]
fn r33_a_past_date_is_zero() {
    assert_eq!(wait(&["Sun, 06 Nov 1994 08:49:37 GMT"]), read(0));
    assert_eq!(wait(&["Sun, 06 Nov 1994 08:49:36 GMT"]), read(0));
    assert_eq!(retry_after(&headers(RETRY_AFTER, &["Sun, 06 Nov 1994 08:49:37 GMT"]), Duration::MAX), read(0));
}

#[test]
fn r34_retry_after_is_read_beside_any_outcome() {
    for (status, body) in [(200, r#"{"access_token":"t"}"#), (400, ""), (500, ""), (429, "")] {
        let answer = answer_with(status, &[(RETRY_AFTER, b"7")], body.as_bytes(), &[]);
        assert_eq!(answer.retry_after, Some(Duration::from_secs(7)), "{status}");
    }
}

proptest! {
    #[test]
    fn r31_r65_any_bytes_are_taken(
        field in prop_oneof![
            field_bytes(40),
            "(Sun|Mon|Sunday|Wednesday),? [0-9]{2}[ -](Nov|Feb)[ -][0-9]{2,4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT".prop_map(String::into_bytes),
            "(Sun|Mon) (Nov|Feb) [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4}".prop_map(String::into_bytes),
            "[!-~ ]{22,31}".prop_map(String::into_bytes),
        ],
    ) {
        let mut headers = HeaderMap::new();
        headers.append(RETRY_AFTER, HeaderValue::from_bytes(&field).unwrap());
        headers.append(DATE, HeaderValue::from_bytes(&field).unwrap());
        let found = retry_after(&headers, Duration::ZERO);
        prop_assert_eq!(found.wait.is_none(), found.unreadable);
        prop_assert!(found.wait.unwrap_or_default() <= MAX_RETRY_AFTER);
    }
}

// ---- challenges ---------------------------------------------------------------------------------------------------------

fn error(fields: &[&str]) -> Option<BearerError> {
    bearer_error(&headers(WWW_AUTHENTICATE, fields))
}

#[test]
fn r42_a_well_formed_bearer_error_is_found() {
    for field in [
        r#"Bearer error="invalid_token""#,
        r#"Bearer error="invalid_token", error_description="The token expired at '01/01/2026 00:00:00'""#,
        r#"Bearer realm="api", error="invalid_token""#,
        r#"bearer ERROR = "invalid_token""#,
        r#"BEARER error=invalid_token"#,
        r#"Bearer error="inv\alid\_token""#,
        r#"Bearer  error="invalid_token" , "#,
        "Bearer\terror=\"invalid_token\"",
        r#"Bearer ,error="invalid_token""#,
        r#",, Bearer error="invalid_token",,realm=x"#,
        r#"Bearer error_description="a, \"b\", Basic c=d", error="invalid_token""#,
        "Bearer error_description=\"Le jeton a expir\u{e9} \u{1f600}\", error=\"invalid_token\"",
        r#"Bearer error="invalid_token", error_uri="https://example.com/?a=b,c""#,
        r#"bEaReR eRrOr="invalid_token""#,
        r#"Bearer realm = "x" , error = "invalid_token""#,
        r#"Bearer realm="a, error=\"insufficient_scope\"", error="invalid_token""#,
        r#"Bearer realm="Bearer error=insufficient_scope, x", error="invalid_token""#,
        r#"Bearer realm="", scope="", error="invalid_token""#,
        r#"Bearer realm="a", realm="b", error="invalid_token""#,
        r#"Bearer realm="\\", error="invalid_token""#,
        r#"Bearer realm="\"", error="invalid_token", x="\\\"""#,
        "Bearer realm=\"\t\", error=\"invalid_token\"  ",
    ] {
        assert_eq!(error(&[field]), Some(BearerError::InvalidToken), "{field}");
    }
    assert_eq!(error(&[r#"Bearer error="insufficient_scope", scope="a b""#]), Some(BearerError::InsufficientScope));
    assert_eq!(error(&["Bearer error=invalid_request"]), Some(BearerError::InvalidRequest));
    assert_eq!(error(&["Bearer error=use_dpop_nonce"]), Some(BearerError::Other));
    assert_eq!(error(&[r#"Bearer error="""#]), Some(BearerError::Other));
    for other in
        ["Invalid_Token", "invalid_token ", " invalid_token", "invalid-token", "invalid_token\\\"", "'invalid_token'"]
    {
        assert_eq!(error(&[&format!(r#"Bearer error="{other}""#)]), Some(BearerError::Other), "{other}");
    }
    assert_eq!(error(&["Bearer error='invalid_token'"]), Some(BearerError::Other));
}

#[test]
fn r41_r42_a_value_without_the_quotes_that_it_needs_hides_no_error() {
    for field in [
        r#"Bearer error="insufficient_scope", error_uri=https://x/y"#,
        "Bearer error=insufficient_scope, error_uri=https://x/y?a=b#c, realm=@",
        r#"Bearer error_uri=https://x/y, error="insufficient_scope""#,
        r#"Bearer error_uri = https://x/y , error="insufficient_scope""#,
        r#"Bearer error="insufficient_scope", authorization_uri=https://login.example/, x=y"#,
        r#"Basic realm=https://x/y, Bearer error_uri=https://x/y, error="insufficient_scope", Negotiate"#,
        r#"Bearer error="insufficient_scope", error_uri=https://x/a,b"#,
    ] {
        assert_eq!(error(&[field]), Some(BearerError::InsufficientScope), "{field}");
        assert!(!rejects_token(StatusCode::UNAUTHORIZED, &headers(WWW_AUTHENTICATE, &[field])), "{field}");
    }
}

#[test]
fn r42_it_is_found_among_several_challenges_and_fields() {
    let bearer = r#"Bearer error="invalid_token""#;
    for other in [
        "Negotiate",
        "Negotiate oYG2MIGzoAMKAQE=",
        "NTLM TlRMTVNTUAACAAAAAAAAAA==",
        r#"Basic realm="a, b", charset="UTF-8""#,
        r#"Basic error="insufficient_scope""#,
        "Digest realm=x, qop=",
        "Digest @!",
        "=",
        "a=b",
        "Bearer",
        r#"Bearer realm="api""#,
        "Bearer error=@",
        r#"Bearer error="insufficient_scope" error="invalid_request""#,
        r#"Bearer error="insufficient_scope""#,
        "\u{e9}",
        r#"DPoP algs="ES256", error="invalid_request""#,
        r#"Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=MD5, nonce="7y=,", opaque="F/""#,
        r#"Basic realm="Bearer error=\"insufficient_scope\", x""#,
        r#"Basic realm="a, Bearer error=insufficient_scope""#,
        r#"Newauth realm="apps", type=1, title="Login to \"apps\"""#,
        "Bearer eyJhbGciOiJSUzI1NiJ9==",
        "GSS-Negotiate",
        r#"Bearer error="use_dpop_nonce", error_description="\"""#,
        ",",
    ] {
        for fields in [vec![other, bearer], vec![bearer, other], vec!["", other, bearer, "Basic"]] {
            assert_eq!(error(&fields), Some(BearerError::InvalidToken), "{fields:?}");
            assert_eq!(error(&[&fields.join(", ")]), Some(BearerError::InvalidToken), "{fields:?}");
        }
    }
    assert_eq!(
        error(&["Bearer error=invalid_request", "Bearer error=insufficient_scope"]),
        Some(BearerError::InvalidRequest)
    );
}

#[test]
fn r42_else_there_is_no_error() {
    for field in [
        "",
        "Bearer",
        r#"Bearer realm="error=invalid_token""#,
        r#"Basic error="invalid_token""#,
        r#"Basic realm="Bearer error=\"invalid_token\"""#,
        r#"Bearer realm="x", Basic error="invalid_token""#,
        r#"Bearer error="invalid_token"#,
        r#"Bearer error="invalid_token\"#,
        r#"Bearer error="invalid_token", realm"="x""#,
        r#"Bearer error="invalid_token", error="invalid_token""#,
        r#"Bearer error="invalid_token", realm=@"x"#,
        r#"Bearer error="invalid_token", realm=a b"#,
        "Bearer error=invalid_token, realm=",
        "Bearer error_uri=https://x/?error=invalid_token",
        "Bearer error_uri=https://x/y error=invalid_token",
        "Basic error_uri=https://x/y, error=invalid_token",
        "Bearer eyJhbGciOiJSUzI1NiJ9==, error=invalid_token",
        "Bearer error_uri=https://x/a,b, error=invalid_token",
        r#"Bearer error_uri=https://x/", error=invalid_token, x=""#,
        "Bearer error=invalid_token@, error_uri=https://x/y",
        r#"Bearer realm="x" error="invalid_token""#,
        "Bearer error=",
        "Bearer error",
        "Bearer eyJhbGciOiJSUzI1NiJ9",
        "Bearererror=invalid_token",
        r#"error="invalid_token""#,
        "Bearer: error=invalid_token",
        r#"Bearer xerror="invalid_token""#,
        r#"X-Bearer error="invalid_token""#,
        r#"Bearer error="invalid_token";error_description="x""#,
        r#"Bearer"error="invalid_token""#,
        r#""Bearer" error="invalid_token""#,
        r#"Bearer "error"="invalid_token""#,
        r#"Bearer error=""invalid_token"""#,
        r#"Bearer error="invalid_token" error_description="it is over""#,
        r#"Bearer eyJhbGciOiJSUzI1NiJ9 error="invalid_token""#,
        r#"Bearer error:"invalid_token""#,
        r#"{"error":"invalid_token"}"#,
        r#"Basic realm="x, Bearer error="invalid_token""#,
        "Bearer error=invalid token",
        "Bearer error=inv\u{e9}lid_token",
        "B\u{e9}arer error=invalid_token",
    ] {
        assert_eq!(error(&[field]), None, "{field}");
    }
    assert_eq!(bearer_error(&headers(AUTHORIZATION, &["Bearer error=invalid_token"])), None);
}

#[test]
fn r42_an_empty_element_ends_no_challenge() {
    assert_eq!(error(&[r#"Bearer realm="x",, , error="invalid_token""#]), Some(BearerError::InvalidToken));
}

#[test]
fn r42_a_backslash_outside_of_quotes_hides_no_comma() {
    assert_eq!(error(&[r#"Basic a\, Bearer error="invalid_token""#]), Some(BearerError::InvalidToken));
}

#[test]
fn r42_a_field_is_read_to_its_cap() {
    let padded = |length: usize| {
        let field = r#"Bearer error="invalid_token", Bearer error=invalid_request"#;
        format!("Basic realm=\"{}\", {field}", "x".repeat(length - field.len() - 16))
    };
    assert_eq!((MAX_FIELD, padded(MAX_FIELD).len()), (8_192, 8_192));
    let last = r#", Bearer error="invalid_token""#;
    assert_eq!(
        error(&[&format!("Basic realm=\"{}\"{last}", "x".repeat(8_192 - 14 - last.len()))]),
        Some(BearerError::InvalidToken)
    );
    assert_eq!(error(&[&padded(MAX_FIELD)]), Some(BearerError::InvalidToken));
    // One byte too long: the last challenge is cut through, and is not read as something shorter.
    assert_eq!(error(&[&padded(MAX_FIELD + 1)]), Some(BearerError::InvalidToken));
    assert_eq!(error(&[&padded(MAX_FIELD + 100)]), None);
    let cut = format!("Basic realm=\"{}\", Bearer error=invalid_token_not", "x".repeat(MAX_FIELD - 42));
    assert!(cut[..MAX_FIELD].ends_with("error=invalid_token"));
    assert_eq!(error(&[&cut]), None);
    let many: Vec<&str> = ["Basic"; 31].into_iter().chain(["Bearer error=invalid_token"]).collect();
    assert_eq!(error(&many), Some(BearerError::InvalidToken));
    let many: Vec<&str> = ["Basic"; 32].into_iter().chain(["Bearer error=invalid_token"]).collect();
    assert_eq!(error(&many), None);
}

#[test]
fn r39_a_401_rejects_the_token_with_or_without_a_challenge() {
    for fields in [
        &[][..],
        &["Bearer"],
        &[r#"Bearer error="invalid_token""#],
        &[r#"Basic realm="api""#],
        &[r#"Basic error="insufficient_scope""#],
        &["@"],
        &["Bearer error=expired"],
        &["Bearer error=insufficient_scope", "Bearer error=invalid_token"],
    ] {
        assert!(rejects_token(StatusCode::UNAUTHORIZED, &headers(WWW_AUTHENTICATE, fields)), "{fields:?}");
    }
}

#[test]
fn r41_403_and_500_and_other_bearer_errors_never_reject_it() {
    let named = headers(WWW_AUTHENTICATE, &[r#"Bearer error="invalid_token""#]);
    for status in [200, 302, 400, 403, 404, 407, 429, 500, 503] {
        assert!(!rejects_token(StatusCode::from_u16(status).unwrap(), &named), "{status}");
        assert!(!rejects_token(StatusCode::from_u16(status).unwrap(), &HeaderMap::new()), "{status}");
    }
    for field in [r#"Bearer error="insufficient_scope""#, "Bearer error=invalid_request"] {
        assert!(!rejects_token(StatusCode::UNAUTHORIZED, &headers(WWW_AUTHENTICATE, &[field])), "{field}");
    }
}

proptest! {
    #[test]
    fn r42_any_bytes_are_taken(fields in prop::collection::vec(prop_oneof![
        field_bytes(60),
        "([Bb]earer|Basic|error|realm|invalid_token|\"|\\\\|=|,| |\t|é|@|a==){0,20}".prop_map(String::into_bytes),
    ], 0..4)) {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(&field).unwrap());
        }
        let error = bearer_error(&headers);
        prop_assert_eq!(
            rejects_token(StatusCode::UNAUTHORIZED, &headers),
            !matches!(error, Some(BearerError::InsufficientScope | BearerError::InvalidRequest))
        );
    }

    #[test]
    fn r42_a_quoted_string_is_read_as_written(description in "[ -~\t]{0,40}", realm in "[ -~]{0,20}") {
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let field = format!(
            "Basic realm={}, Bearer error_description={}, error=\"insufficient_scope\", Negotiate",
            quoted(&realm),
            quoted(&description)
        );
        prop_assert_eq!(error(&[&field]), Some(BearerError::InsufficientScope));
    }
}
