//! Download of images and videos from a local test server.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use glm4v_processor::{
    ChatTemplateOptions, ContentPart, DecodeLimits, HttpLimits, ImageProcessor, ImageSource, Message,
    Processor, VideoInput,
};
use support::{golden, videos};

/// Responds by path until the test ends; returns the base URL.
fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            let path = request.split(' ').nth(1).unwrap().to_owned();
            lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).for_each(drop);
            let file = |body: Vec<u8>| {
                [
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
                        .into(),
                    body,
                ]
                .concat()
            };
            let answer = match path.as_str() {
                "/image" => file(std::fs::read(golden().join("images/shapes_56x56.png")).unwrap()),
                "/video" => file(std::fs::read(videos().join("sampled_30f_4fps.png")).unwrap()),
                "/moved" => b"HTTP/1.1 302 Found\r\nLocation: /image\r\nContent-Length: 0\r\n\r\n".to_vec(),
                "/circle" => b"HTTP/1.1 302 Found\r\nLocation: /circle\r\nContent-Length: 0\r\n\r\n".to_vec(),
                "/elsewhere" => {
                    b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"
                        .to_vec()
                }
                "/slow" => {
                    std::thread::sleep(Duration::from_secs(3));
                    Vec::new()
                }
                _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            };
            let _ = stream.write_all(&answer);
            // Closed when the client sends a second request on it, as a server may that has not promised to keep the connection.
            if path == "/moved" {
                let _ = stream.read(&mut [0]);
            }
        }
    });
    format!("http://{address}")
}

fn allowed() -> DecodeLimits {
    DecodeLimits {
        http: Some(HttpLimits { max_seconds: 1, ..HttpLimits::default() }),
        ..DecodeLimits::default()
    }
}

fn chain(error: &dyn Error) -> String {
    error.source().map_or(error.to_string(), |cause| format!("{error}: {}", chain(cause)))
}

#[test]
fn images_are_downloaded_only_where_allowed() {
    let server = serve();
    let url = |path: &str| ImageSource::Url(format!("{server}{path}"));

    let refused = ImageProcessor::load_image(&url("/image")).unwrap_err().to_string();
    let fetched = [url("/image"), url("/moved")].map(|url| allowed().load(&url).unwrap());

    assert!(refused.ends_with("needed: a local path or a data: URL"), "{refused}");
    let file = ImageSource::Path(golden().join("images/shapes_56x56.png"));
    let expected = ImageProcessor::load_image(&file).unwrap();
    assert_eq!(fetched, [expected.clone(), expected]);
}

#[test]
fn failed_downloads_are_named() {
    let server = serve();
    let error = |limits: &DecodeLimits, path: &str| {
        let error = limits.load(&ImageSource::Url(format!("{server}{path}"))).unwrap_err();
        chain(&error).replace(&server, "S")
    };

    assert_eq!(error(&allowed(), "/none"), "S/none: cannot be fetched: the server answers 404, needed 200");
    let small = DecodeLimits { max_file_bytes: 1000, ..allowed() };
    assert_eq!(error(&small, "/image"), "S/image: cannot be fetched: more than the limit of 1000 bytes");
    assert!(error(&allowed(), "/circle").starts_with("S/circle: cannot be fetched: no answer"));
    // Asked for on the same server or not at all, never on this machine.
    assert!(error(&allowed(), "/elsewhere").starts_with("S/elsewhere: cannot be fetched: "));
    assert_eq!(error(&allowed(), "/slow"), "S/slow: cannot be fetched: not there after 1 s, the limit");
}

#[test]
fn a_prompt_may_have_images_and_videos_from_urls() {
    let server = serve();
    let processor = Processor::load(&golden().join("checkpoints/glm4v")).unwrap();
    let parts = |image: String, video: &str| {
        vec![
            ContentPart::Image(ImageSource::parse(&image, "".as_ref())),
            ContentPart::Video(VideoInput::parse(video, "".as_ref())),
        ]
    };
    let encode = |processor: &Processor, parts| {
        processor.encode(&[Message::new("user", parts)], &ChatTemplateOptions::generation_prompt())
    };
    let local = |path: std::path::PathBuf| path.display().to_string();

    let remote = || parts(format!("{server}/image"), &format!("{server}/video"));
    let expected =
        parts(local(golden().join("images/shapes_56x56.png")), &local(videos().join("sampled_30f_4fps.png")));
    let expected = encode(&processor, expected).unwrap();

    assert!(encode(&processor, remote()).is_err());
    let processor = processor.allow_http(HttpLimits::default());
    assert!(encode(&processor, remote()).unwrap() == expected);
}
