//! Images against transformers' torchvision backend, to the bit.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use glm4v_processor::{
    ContentPart, ImageProcessor, ImageSource, Message, PatchedImage, ResizeLimits, Rgb, parse_messages,
    resize_bicubic, smart_resize,
};
use serde_json::Value;
use support::{Tensors, cases, checksum, golden, json, usizes};

/// What `Glm4vImageProcessor()` starts from, with the size of a case.
fn processor(options: &Value) -> ImageProcessor {
    let size = options
        .get("size")
        .cloned()
        .unwrap_or_else(|| serde_json::json!({"shortest_edge": 12_544, "longest_edge": 11_760_000}));
    ImageProcessor::from_json(&serde_json::json!({"size": size}).to_string()).unwrap()
}

fn rgb(tensors: &Tensors, name: &str) -> Rgb {
    let (shape, bytes) = tensors.bytes(name);
    Rgb::new(shape[0], shape[1], bytes).unwrap()
}

/// The cases of one image, with their tensors.
fn images() -> impl Iterator<Item = (String, Value, Tensors)> {
    let names = cases("processor/image").into_iter().filter(|name| name != "batch_of_three");
    names.map(|name| {
        let tensors = Tensors::read(format!("processor/image/{name}.safetensors"));
        let meta = json(format!("processor/image/{name}.json"));
        (name, meta, tensors)
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn smart_resize_gives_the_sizes_and_errors_of_transformers() {
    let rows = json("processor/smart_resize.json");
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 300);
    for row in rows {
        let get = |key: &str| row[key].as_u64().unwrap() as usize;
        let limits = ResizeLimits {
            temporal_factor: 2,
            factor: 28,
            min_pixels: get("shortest"),
            max_pixels: get("longest"),
        };
        let found = smart_resize(get("t"), get("h"), get("w"), limits);
        match row.get("error") {
            Some(error) => assert_eq!(found.unwrap_err().to_string(), error.as_str().unwrap(), "{row}"),
            None => {
                let (height, width) = found.unwrap();
                assert_eq!(vec![height, width], usizes(&row["out"]), "{row}");
            }
        }
    }
}

#[test]
fn resized_images_are_those_of_torchvision() {
    for (name, _, tensors) in images() {
        let expected = rgb(&tensors, "out.resized_u8");

        let resized = resize_bicubic(&rgb(&tensors, "out.rgb_u8"), expected.height(), expected.width());

        let pairs = resized.pixels().iter().zip(expected.pixels());
        let differ = pairs.filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{name}: of {} values", expected.pixels().len());
    }
}

#[test]
fn pixel_values_are_those_of_transformers() {
    for (name, meta, tensors) in images() {
        let processor = processor(&meta["options"]);

        let PatchedImage { pixel_values, grid } = processor.process(&rgb(&tensors, "out.rgb_u8")).unwrap();

        assert_eq!(grid.to_vec(), usizes(&meta["grid"]), "{name}");
        assert_eq!(pixel_values.len(), grid.iter().product::<usize>() * processor.row_len(), "{name}");
        let same =
            |found: &[f32], tensor| assert!(bits(found) == bits(&tensors.f32(tensor)), "{name}: {tensor}");
        if tensors.has("out.pixel_values") {
            same(&pixel_values, "out.pixel_values");
        } else {
            let rows = 8 * processor.row_len();
            same(&pixel_values[..rows], "out.pixel_values_first8");
            same(&pixel_values[pixel_values.len() - rows..], "out.pixel_values_last8");
        }
    }
}

#[test]
fn images_of_a_batch_are_concatenated() {
    let meta = json("processor/image/batch_of_three.json");
    let tensors = Tensors::read("processor/image/batch_of_three.safetensors");
    let processor = processor(&Value::Null);

    let mut pixel_values = Vec::new();
    let mut grids = Vec::new();
    for file in meta["files"].as_array().unwrap() {
        let source = ImageSource::Path(golden().join(file.as_str().unwrap()));
        let image = ImageProcessor::load_image(&source).unwrap();
        let patched = processor.process(&image).unwrap();
        pixel_values.extend(patched.pixel_values);
        grids.push(patched.grid);
    }

    assert_eq!(grids, tensors.grids("out.image_grid_thw"));
    assert!(bits(&pixel_values) == bits(&tensors.f32("out.pixel_values")));
}

#[test]
fn files_are_decoded_like_load_image() {
    for (name, meta, tensors) in images() {
        let source = ImageSource::Path(golden().join(meta["file"].as_str().unwrap()));

        let decoded = ImageProcessor::load_image(&source).unwrap();

        let expected = rgb(&tensors, "out.rgb_u8");
        assert_eq!((decoded.height(), decoded.width()), (expected.height(), expected.width()), "{name}");
        assert!(decoded == expected, "{name}");
    }
}

#[test]
fn files_have_the_pixel_values_of_transformers() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/processor/checksums.json");
    let rows: Value = serde_json::from_str(&std::fs::read_to_string(fixtures).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 21);
    for row in rows {
        let file = row["file"].as_str().unwrap();
        let image = ImageProcessor::load_image(&ImageSource::Path(golden().join(file))).unwrap();
        let processor = processor(&row["options"]);
        let [_, rows, columns] = processor.grid(image.height(), image.width()).unwrap();

        let resized = resize_bicubic(&image, rows * 14, columns * 14);
        let patched = processor.process(&image).unwrap();

        assert_eq!(patched.grid.to_vec(), usizes(&row["grid"]), "{file}");
        assert_eq!(row["rgb"], checksum(image.pixels().iter().copied()), "{file}: decoded");
        assert_eq!(row["resized"], checksum(resized.pixels().iter().copied()), "{file}: resized");
        if let Some(expected) = row.get("pixel_values") {
            let bytes = patched.pixel_values.iter().flat_map(|v| v.to_le_bytes());
            assert_eq!(expected, &checksum(bytes), "{file}: pixel values");
        }
    }
}

#[test]
fn noise_is_resized_as_in_torchvision() {
    let rows = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/processor/resize.json");
    let rows: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(rows).unwrap()).unwrap();
    assert_eq!(rows.len(), 14);
    for row in rows {
        let (from, to) = (usizes(&row["from"]), usizes(&row["to"]));
        let mut state = 1u32;
        let noise = (0..from[0] * from[1] * 3).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let image = Rgb::new(from[0], from[1], noise.collect()).unwrap();

        let resized = resize_bicubic(&image, to[0], to[1]);

        assert_eq!(row["resized"], checksum(resized.pixels().iter().copied()), "{from:?} to {to:?}");
    }
}

#[test]
fn other_formats_are_decoded_like_load_image() {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/processor/formats");
    let rows = std::fs::read_to_string(folder.join("checksums.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    assert_eq!(rows.len(), 31);
    for row in rows {
        let file = row["file"].as_str().unwrap();

        let image = ImageProcessor::load_image(&ImageSource::Path(folder.join(file))).unwrap();

        assert_eq!(
            (&row["height"], &row["width"]),
            (&image.height().into(), &image.width().into()),
            "{file}"
        );
        assert_eq!(row["rgb"], checksum(image.pixels().iter().copied()), "{file}");
    }
}

#[test]
fn an_image_of_the_image_crate_equals_its_file() {
    for name in ["graya_96x64.png", "gray16_80x60.png", "rgba_120x80.png", "shapes_56x56.png"] {
        let path = golden().join("images").join(name);
        let value = ImageSource::Pixels(image::open(&path).unwrap().into());

        let image = ImageProcessor::load_image(&value).unwrap();

        assert_eq!(image, ImageProcessor::load_image(&ImageSource::Path(path)).unwrap(), "{name}");
        // And survives as JSON, as messages do.
        let message = Message::new("user", vec![ContentPart::Image(value)]);
        let json = serde_json::to_string(&[message]).unwrap();
        let read = parse_messages(&json, "".as_ref()).unwrap();
        assert_eq!(ImageProcessor::load_image(read[0].images().next().unwrap()).unwrap(), image, "{name}");
    }
}
