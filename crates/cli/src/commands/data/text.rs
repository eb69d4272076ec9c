//! A record for the terminal.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use glm4v_data::{MediaView, Piece, RecordView};
use glm4v_inputs::Modality;

/// Around label tokens, without colors.
const MARKS: [&str; 2] = ["⟦", "⟧"];

const LABEL: Style = AnsiColor::Green.on_default().bold();
const PLACEHOLDERS: Style = AnsiColor::Cyan.on_default();

/// A record with its labels in color, or between marks.
pub(super) fn record(view: &RecordView, index: usize, color: bool) -> String {
    let mut text = format!("record {index}, {}\n", printable(&view.location.to_string()));
    for piece in &view.pieces {
        match piece {
            Piece::Text { text: piece, loss_weight } if *loss_weight > 0.0 => {
                text += &label(&printable(piece), *loss_weight, color);
            }
            Piece::Text { text: piece, .. } => text += &printable(piece),
            Piece::Placeholders { media, tokens, temporal_patch } => {
                let folded = folded(&view.media[*media], *media, *tokens, *temporal_patch);
                text += &styled(&folded, PLACEHOLDERS, color);
            }
        }
    }
    text + "\n" + &counts(view)
}

fn label(text: &str, weight: f32, color: bool) -> String {
    let weight = if weight == 1.0 { String::new() } else { format!("*{weight}") };
    match color {
        true => styled(&(text.to_owned() + &weight), LABEL, true),
        false => format!("{}{text}{}{weight}", MARKS[0], MARKS[1]),
    }
}

fn styled(text: &str, style: Style, color: bool) -> String {
    if color { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// `<|image|> x 256 [grid 1x32x32, 448x448 px, from 500x375]`
pub(super) fn folded(media: &MediaView, index: usize, tokens: usize, temporal_patch: usize) -> String {
    let grid = media.grid;
    let mut text = format!("<|image|> x {tokens} [");
    if media.modality == Modality::Video {
        let _ = write!(text, "video {index}, temporal patch {} of {}, ", temporal_patch + 1, grid.t);
    }
    let _ = write!(text, "grid {}x{}x{}, {} px", grid.t, grid.h, grid.w, pixels(media.resized));
    if let Some(size) = media.size {
        let _ = write!(text, ", from {}", pixels(size));
    }
    text + "]"
}

fn pixels([width, height]: [usize; 2]) -> String {
    format!("{width}x{height}")
}

/// `21 tokens, 2 of them labels (9.5 %), 1 image with 4 tokens`
pub(super) fn counts(view: &RecordView) -> String {
    let share = 100.0 * view.labels as f64 / view.tokens.max(1) as f64;
    let mut text = format!("{} tokens, {} of them labels ({share:.1} %)", view.tokens, view.labels);
    for (modality, name) in [(Modality::Image, "image"), (Modality::Video, "video")] {
        let all: Vec<_> = view.media.iter().filter(|media| media.modality == modality).collect();
        let tokens: usize = all.iter().map(|media| media.tokens).sum();
        match all.len() {
            0 => {}
            1 => text += &format!(", 1 {name} with {tokens} tokens"),
            count => text += &format!(", {count} {name}s with {tokens} tokens"),
        }
    }
    text
}

/// Text of a stranger without control characters, which could move the cursor or write into the title of the window.
pub(super) fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() || is_invisible(c) => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Characters that show nothing, or turn the direction of what follows.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use glm4v_data::RecordLocation;
    use glm4v_inputs::Grid;

    use super::*;

    fn view() -> RecordView {
        let image = MediaView {
            modality: Modality::Image,
            name: "a.png".to_owned(),
            size: Some([500, 375]),
            resized: [448, 336],
            grid: Grid::new(1, 24, 32),
            tokens: 192,
        };
        let text = |text: &str, loss_weight| Piece::Text { text: text.to_owned(), loss_weight };
        let pieces = vec![
            text("<|user|>\n", 0.0),
            Piece::Placeholders { media: 0, tokens: 192, temporal_patch: 0 },
            text("what\u{1b}[2J?<|assistant|>\n", 0.0),
            text("six", 1.0),
            text("<|user|>", 0.5),
        ];
        RecordView {
            location: RecordLocation::line(Path::new("x.jsonl"), 1),
            pieces,
            media: vec![image],
            tokens: 200,
            labels: 2,
        }
    }

    #[test]
    fn labels_are_marked_placeholders_folded_and_control_characters_escaped() {
        let shown = record(&view(), 3, false);

        let (head, rest) = shown.split_once('\n').unwrap();
        assert!(head == "record 3, x.jsonl: line 1", "{head}");
        assert_eq!(
            rest,
            "<|user|>\n<|image|> x 192 [grid 1x24x32, 448x336 px, from 500x375]what\\u{1b}[2J?<|assistant|>\n\
             ⟦six⟧⟦<|user|>⟧*0.5\n200 tokens, 2 of them labels (1.0 %), 1 image with 192 tokens"
        );
    }

    #[test]
    fn colors_replace_the_marks() {
        let shown = record(&view(), 0, true);

        assert!(shown.contains(&format!("{LABEL}six{LABEL:#}")) && !shown.contains('⟦'), "{shown}");
        assert!(!shown.contains("\u{1b}[2J"));
    }
}
