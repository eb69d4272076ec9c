//! `glm4v data show`

use anstream::{AutoStream, ColorChoice};
use glm4v_data::{MediaView, Piece, RecordView, encode};
use glm4v_weights::write_file;
use serde_json::{Value, json};

use super::html::Page;
use super::{records_at, text};
use crate::args::DataShow;
use crate::commands::{open_model, print_line};

pub(super) fn show(args: &DataShow) -> anyhow::Result<()> {
    let (_, processor) = open_model(&args.input.model)?;
    let source = args.input.source()?;
    let records = records_at(&source, args.input.media_dir.as_deref(), &args.indices)?;
    let color = AutoStream::choice(&std::io::stdout()) != ColorChoice::Never;
    let mut page = args.html.as_ref().map(|_| Page::new(&source.name));
    for (at, (record, &index)) in records.iter().zip(&args.indices).enumerate() {
        let sample = encode(record, &processor, args.input.label_options())?;
        let view = RecordView::new(record, &sample, &processor);
        if let Some(page) = &mut page {
            page.push(record, &view, index, &processor);
        }
        if args.json {
            print_line(&object(&view, index).to_string())?;
        } else {
            let gap = if at > 0 { "\n" } else { "" };
            print_line(&format!("{gap}{}", text::record(&view, index, color)))?;
        }
    }
    if let (Some(page), Some(path)) = (page, &args.html) {
        write_file(path, page.finish().as_bytes())?;
    }
    Ok(())
}

fn object(view: &RecordView, index: usize) -> Value {
    let piece = |piece: &Piece| match piece {
        Piece::Text { text, loss_weight } => json!({"text": text, "loss_weight": loss_weight}),
        Piece::Placeholders { media, tokens, temporal_patch } => {
            json!({"media": media, "tokens": tokens, "temporal_patch": temporal_patch})
        }
    };
    let media = |media: &MediaView| {
        json!({"modality": media.modality.to_string(), "name": media.name, "size": media.size,
            "resized": media.resized, "grid": media.grid.thw(), "tokens": media.tokens})
    };
    json!({
        "index": index,
        "source": view.location.to_string(),
        "tokens": view.tokens,
        "labels": view.labels,
        "pieces": view.pieces.iter().map(piece).collect::<Vec<_>>(),
        "media": view.media.iter().map(media).collect::<Vec<_>>(),
    })
}
