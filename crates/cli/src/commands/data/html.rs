//! A page with records and their images, in one file.
//!
//! Records are of strangers: every text is escaped, and the page may load nothing and run nothing.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use glm4v_data::{Piece, Record, RecordView};
use glm4v_inputs::Modality;
use glm4v_processor::{ImageSource, Processor, resize_bicubic};

use super::text::{counts, folded, printable};

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>glm4v data show</title>
<style>
body { font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 1em; }
mark { background: #b8f0c0; }
.placeholders { color: #06687c; }
figure { display: inline-block; margin: 0 1em 1em 0; }
figure img { max-width: 100%; image-rendering: auto; }
figcaption, .counts { color: #555; font-size: 0.9em; }
</style>
</head>
<body>
"#;

/// A page under construction.
pub(super) struct Page(String);

impl Page {
    pub(super) fn new(dataset: &str) -> Self {
        Self(format!("{HEAD}<h1>{}</h1>\n", escape(dataset)))
    }

    /// Appends a record. An image has the size that the model sees.
    pub(super) fn push(&mut self, record: &Record, view: &RecordView, index: usize, processor: &Processor) {
        let page = &mut self.0;
        let location = escape(&view.location.to_string());
        let _ =
            write!(page, "<h2>record {index}</h2>\n<p class=\"counts\">{location}<br>{}</p>\n", counts(view));
        let images = view.media.iter().filter(|media| media.modality == Modality::Image);
        for (source, media) in record.images().zip(images) {
            let [width, height] = media.resized;
            let name = escape(&media.name);
            page.push_str("<figure>");
            if let Some(url) = data_url(source, media.resized, processor) {
                let _ =
                    write!(page, "<img src=\"{url}\" width=\"{width}\" height=\"{height}\" alt=\"{name}\">");
            }
            let _ = writeln!(page, "<figcaption>{name}</figcaption></figure>");
        }
        page.push_str("<pre>");
        view.pieces.iter().for_each(|piece| push_piece(page, piece, view));
        page.push_str("</pre>\n");
    }

    pub(super) fn finish(self) -> String {
        self.0 + "</body>\n</html>\n"
    }
}

fn push_piece(page: &mut String, piece: &Piece, view: &RecordView) {
    match piece {
        Piece::Text { text, loss_weight } if *loss_weight > 0.0 => {
            let _ = write!(page, "<mark title=\"weight {loss_weight}\">{}</mark>", escape(text));
        }
        Piece::Text { text, .. } => page.push_str(&escape(text)),
        Piece::Placeholders { media, tokens, temporal_patch } => {
            let folded = escape(&folded(&view.media[*media], *media, *tokens, *temporal_patch));
            let _ = write!(page, "<span class=\"placeholders\">{folded}</span>");
        }
    }
}

/// The resized image as PNG; none if it cannot be decoded any more.
fn data_url(source: &ImageSource, [width, height]: [usize; 2], processor: &Processor) -> Option<String> {
    let image = processor.image_processor().decode_limits().load(source).ok()?;
    let png = resize_bicubic(&image, height, width).to_png();
    Some(format!("data:image/png;base64,{}", STANDARD.encode(png)))
}

/// Text for an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_can_become_an_element_or_leave_an_attribute() {
        let escaped = escape("</pre><script>alert('x')</script> \" & \u{202e}");

        assert_eq!(
            escaped,
            "&lt;/pre&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &quot; &amp; \\u{202e}"
        );
    }
}
