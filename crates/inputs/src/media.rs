//! Images, videos and whatever else fills placeholder tokens, by modality.

use std::collections::BTreeMap;
use std::fmt;

use crate::grid::Grid;

/// What a placeholder token is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Modality {
    /// Features of an image.
    Image,
    /// Features of the frames of a video.
    Video,
}

impl Modality {
    /// The token's `mm_token_type_ids` in transformers, where text has 0.
    pub fn token_type_id(self) -> u8 {
        match self {
            Self::Image => 1,
            Self::Video => 2,
        }
    }

    /// The modality of an entry of `mm_token_type_ids`; none for text and for unknown ids.
    pub fn from_token_type_id(id: u8) -> Option<Self> {
        [Self::Image, Self::Video].into_iter().find(|modality| modality.token_type_id() == id)
    }
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Video => "video",
        })
    }
}

/// Patches of all items of one modality, item after item, in 2x2 block order.
///
/// Dimensions: `P` patches of all items, `C·T·ph·pw` values a patch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Patches {
    /// `pixel_values`: `[P, C·T·ph·pw]`, row-major and normalized. Empty for features that were computed earlier.
    pub values: Vec<f32>,
    /// One grid per item, in the order of the placeholders.
    pub grids: Vec<Grid>,
}

impl Patches {
    /// `P` according to the grids.
    pub fn count(&self) -> usize {
        self.grids.iter().map(Grid::patches).sum()
    }
}

const NO_PATCHES: &Patches = &Patches { values: Vec::new(), grids: Vec::new() };

/// The patches of a sample or batch, by modality.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MultimodalInputs {
    by_modality: BTreeMap<Modality, Patches>,
}

impl FromIterator<(Modality, Patches)> for MultimodalInputs {
    /// Patches without any grid are left out: a modality that is there has items.
    fn from_iter<I: IntoIterator<Item = (Modality, Patches)>>(patches: I) -> Self {
        let present = patches.into_iter().filter(|(_, patches)| *patches != *NO_PATCHES);
        Self { by_modality: present.collect() }
    }
}

impl MultimodalInputs {
    /// The patches of a modality; empty without any.
    pub fn patches(&self, modality: Modality) -> &Patches {
        self.by_modality.get(&modality).unwrap_or(NO_PATCHES)
    }

    /// The patches of a modality, to change them.
    pub fn patches_mut(&mut self, modality: Modality) -> &mut Patches {
        self.by_modality.entry(modality).or_default()
    }

    /// The grids of a modality's items.
    pub fn grids(&self, modality: Modality) -> &[Grid] {
        &self.patches(modality).grids
    }

    /// The modalities that have items, images first.
    pub fn iter(&self) -> impl Iterator<Item = (Modality, &Patches)> {
        self.by_modality.iter().map(|(modality, patches)| (*modality, patches))
    }

    /// Makes room for the items of other samples, so that appending them moves no patches.
    pub(crate) fn reserve<'a>(&mut self, others: impl Iterator<Item = &'a Self>) {
        let mut values: BTreeMap<Modality, usize> = BTreeMap::new();
        for (modality, patches) in others.flat_map(Self::iter) {
            *values.entry(modality).or_default() += patches.values.len();
        }
        for (modality, values) in values {
            self.by_modality.entry(modality).or_default().values.reserve_exact(values);
        }
    }

    /// Appends the items of another sample.
    pub fn extend(&mut self, other: &Self) {
        for (modality, patches) in other.iter() {
            let all = self.by_modality.entry(modality).or_default();
            all.values.extend_from_slice(&patches.values);
            all.grids.extend_from_slice(&patches.grids);
        }
    }

    /// Whether there is no item of any modality.
    pub fn is_empty(&self) -> bool {
        self.by_modality.is_empty()
    }
}
