//! Where the samples of an MP4 track lie (ISO/IEC 14496-12, 8.7): size, chunk and offset tables,
//! walked lazily, so that no table entry is expanded before it is needed.

use mp4_atom::{StscEntry, StszSamples};

/// Tables of one track.
#[derive(Clone, Debug, Default)]
pub(super) struct SampleTable {
    sizes: StszSamples,
    chunk_offsets: Vec<u64>,
    runs: Vec<StscEntry>,
}

/// Place of one sample in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SamplePlace {
    pub offset: u64,
    pub size: u32,
}

impl SampleTable {
    /// Checks the tables against each other and against the file's length.
    pub fn new(
        sizes: StszSamples,
        chunk_offsets: Vec<u64>,
        runs: Vec<StscEntry>,
        file_bytes: u64,
    ) -> Result<Self, String> {
        let table = Self {
            sizes,
            chunk_offsets,
            runs,
        };
        table.check_runs()?;
        let count = u64::from(table.count());
        let total: u64 = match &table.sizes {
            StszSamples::Identical { count, size } => u64::from(*count) * u64::from(*size),
            StszSamples::Different { sizes } => sizes.iter().map(|&size| u64::from(size)).sum(),
        };
        if count == 0 {
            return Err("its video track is empty".to_owned());
        }
        if total > file_bytes
            || table
                .chunk_offsets
                .iter()
                .any(|&offset| offset >= file_bytes)
        {
            return Err("it ends before its last frame".to_owned());
        }
        if table.room() < count {
            return Err("its sample tables contradict each other".to_owned());
        }
        Ok(table)
    }

    /// Samples in all.
    pub fn count(&self) -> u32 {
        match &self.sizes {
            StszSamples::Identical { count, .. } => *count,
            StszSamples::Different { sizes } => sizes.len() as u32,
        }
    }

    /// Runs start at chunk 1, ascend, and are not empty.
    fn check_runs(&self) -> Result<(), String> {
        let ascending = self
            .runs
            .windows(2)
            .all(|pair| pair[0].first_chunk < pair[1].first_chunk);
        let starts = self.runs.first().is_some_and(|run| run.first_chunk == 1);
        let filled = self.runs.iter().all(|run| run.samples_per_chunk > 0);
        let one_format = self
            .runs
            .iter()
            .all(|run| run.sample_description_index == 1);
        match (ascending && starts && filled, one_format) {
            (false, _) => Err("its sample-to-chunk table is not in order".to_owned()),
            (_, false) => Err("its format changes along the way".to_owned()),
            _ => Ok(()),
        }
    }

    /// Samples that the chunks could hold.
    fn room(&self) -> u64 {
        let chunk_count = self.chunk_offsets.len() as u64;
        let runs = self.runs.iter().enumerate().map(|(index, run)| {
            let end = self
                .runs
                .get(index + 1)
                .map_or(chunk_count + 1, |next| next.first_chunk.into());
            let end = end.min(chunk_count + 1);
            end.saturating_sub(run.first_chunk.into())
                .saturating_mul(run.samples_per_chunk.into())
        });
        runs.fold(0, u64::saturating_add)
    }

    fn size(&self, index: u32) -> Option<u32> {
        match &self.sizes {
            StszSamples::Identical { count, size } => (index < *count).then_some(*size),
            StszSamples::Different { sizes } => sizes.get(index as usize).copied(),
        }
    }
}

/// Walks the samples in decoding order.
pub(super) struct SampleWalk {
    table: SampleTable,
    index: u32,
    chunk: usize,
    run: usize,
    in_chunk: u32,
    in_chunk_bytes: u64,
}

impl SampleWalk {
    pub fn new(table: SampleTable) -> Self {
        Self {
            table,
            index: 0,
            chunk: 0,
            run: 0,
            in_chunk: 0,
            in_chunk_bytes: 0,
        }
    }
}

impl Iterator for SampleWalk {
    type Item = SamplePlace;

    fn next(&mut self) -> Option<SamplePlace> {
        let size = self.table.size(self.index)?;
        if self.in_chunk == self.table.runs.get(self.run)?.samples_per_chunk {
            self.chunk += 1;
            (self.in_chunk, self.in_chunk_bytes) = (0, 0);
            let next_run = self.table.runs.get(self.run + 1);
            if next_run.is_some_and(|run| run.first_chunk as usize == self.chunk + 1) {
                self.run += 1;
            }
        }
        let start = *self.table.chunk_offsets.get(self.chunk)?;
        let place = SamplePlace {
            offset: start.checked_add(self.in_chunk_bytes)?,
            size,
        };
        self.index += 1;
        self.in_chunk += 1;
        self.in_chunk_bytes += u64::from(size);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_chunk: u32, samples_per_chunk: u32) -> StscEntry {
        StscEntry {
            first_chunk,
            samples_per_chunk,
            sample_description_index: 1,
        }
    }

    fn sizes(sizes: &[u32]) -> StszSamples {
        StszSamples::Different {
            sizes: sizes.to_vec(),
        }
    }

    #[test]
    fn samples_follow_their_chunks() {
        let runs = vec![run(1, 2), run(3, 1)];
        let table =
            SampleTable::new(sizes(&[5, 6, 7, 8, 9]), vec![100, 200, 50, 60], runs, 1000).unwrap();
        let places: Vec<_> = SampleWalk::new(table)
            .map(|place| (place.offset, place.size))
            .collect();
        assert_eq!(places, [(100, 5), (105, 6), (200, 7), (207, 8), (50, 9)]);
    }

    #[test]
    fn contradictions_are_refused() {
        let table = |sizes, offsets: &[u64], runs: &[StscEntry]| {
            SampleTable::new(sizes, offsets.to_vec(), runs.to_vec(), 1000)
        };
        assert!(table(sizes(&[1, 1, 1]), &[0], &[run(1, 2)]).is_err());
        assert!(table(sizes(&[1]), &[0], &[run(2, 1)]).is_err());
        assert!(table(sizes(&[1]), &[1000], &[run(1, 1)]).is_err());
        assert!(table(sizes(&[]), &[0], &[run(1, 1)]).is_err());
        assert!(table(sizes(&[600, 600]), &[0], &[run(1, 2)]).is_err());
        let huge = StszSamples::Identical {
            count: u32::MAX,
            size: u32::MAX,
        };
        assert!(table(huge, &[0], &[run(1, u32::MAX)]).is_err());
        assert!(table(sizes(&[1]), &[0], &[]).is_err());
    }
}
