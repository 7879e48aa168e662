//! What is remembered of one packet, in 128 bits so that one compare-exchange changes all of it.
//!
//! ```text
//! bits 127..116  check       12 bits of the key's hash
//!      115..112  generation  the state belongs to the slot's id if the id has the same
//!      111..109  places - 1
//!      108..0    reports (w), then the places: point (11) and deficit (w) each
//!
//! places     1..3   4   5   6   7   8 (and no reports, since no point can join)
//! width w      19  13   9   6   4   2
//! ```
//!
//! The rule is "report when the count at this point exceeds what has been reported". With
//! `deficit = reports - count`, a point with deficit 0 reports (and every other point falls one
//! behind), a point with a deficit catches up by one. Only the differences are stored, so a stream
//! of identical packets can go on for ever. A point that joins is behind by all reports but the one
//! whose copy it is.
//!
//! A deficit that would pass 2^w - 1 stays there, and a ninth point is always reported: both err
//! towards a duplicate. Most packets are seen at two or three points: there the copies of a stream
//! of identical packets may be half a million behind; with stacked devices the points are more, and
//! the room for repeats less, but copies of what is not repeated are exact up to eight points.

use super::key::{CHECK_BITS, GENERATION_BITS};

/// Bits of a point's number; the table's points are below 2^11.
pub(super) const POINT_BITS: u32 = 11;
/// Points of one packet.
pub(super) const MAX_PLACES: u32 = 8;
/// By number of places; the first is unused.
const WIDTHS: [u32; MAX_PLACES as usize + 1] = [19, 19, 19, 19, 13, 9, 6, 4, 2];
const BODY_BITS: u32 = 109;
const GENERATION_SHIFT: u32 = BODY_BITS + 3;
const CHECK_SHIFT: u32 = GENERATION_SHIFT + GENERATION_BITS;
const _: () = assert!(CHECK_SHIFT + CHECK_BITS == 128);
const _: () = {
    let mut count = 1;
    while count <= MAX_PLACES {
        let shape = Shape::of(count);
        assert!(shape.at(count) <= BODY_BITS);
        count += 1;
    }
};
/// With more places than this, repeats can outrun the deficits while copies are on their way.
const EXACT_PLACES: u32 = 4;

/// How the body is divided.
#[derive(Clone, Copy)]
struct Shape {
    count: u32,
    width: u32,
    has_reports: bool,
}

impl Shape {
    const fn of(count: u32) -> Self {
        Self { count, width: WIDTHS[count as usize], has_reports: count < MAX_PLACES }
    }

    /// Where a place begins.
    const fn at(self, index: u32) -> u32 {
        let reports = if self.has_reports { self.width } else { 0 };
        reports + index * (POINT_BITS + self.width)
    }

    const fn max(self) -> u128 {
        (1 << self.width) - 1
    }
}

/// One entry's counts; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(pub(super) u128);

/// What a sighting means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sighting {
    /// Not reported often enough yet: report.
    Fresh(State),
    /// A copy of what was reported elsewhere.
    Duplicate(State),
    /// All places are taken by other points: report, and remember nothing.
    Overflow,
}

impl State {
    /// The state after the first report, at `point`.
    pub(super) fn first(check: u32, generation: u32, point: u16) -> Self {
        let shape = Shape::of(1);
        Self(
            u128::from(check) << CHECK_SHIFT
                | u128::from(generation) << GENERATION_SHIFT
                | u128::from(point) << (shape.at(0) + shape.width)
                | 1,
        )
    }

    pub(super) fn check(self) -> u32 {
        u32::try_from(self.0 >> CHECK_SHIFT).expect("12 bits are left")
    }

    pub(super) fn generation(self) -> u32 {
        u32::try_from(self.0 >> GENERATION_SHIFT & ((1 << GENERATION_BITS) - 1)).expect("masked")
    }

    fn shape(self) -> Shape {
        Shape::of(u32::try_from(self.0 >> BODY_BITS & 7).expect("masked") + 1)
    }

    /// Up to the width's maximum; `None` where it is not kept.
    fn reports(self) -> Option<u128> {
        let shape = self.shape();
        shape.has_reports.then_some(self.0 & shape.max())
    }

    /// Where a point's deficit is, and what it is.
    fn find(self, shape: Shape, point: u16) -> Option<(u32, u128)> {
        (0..shape.count).map(|index| shape.at(index)).find_map(|at| {
            let here = self.0 >> at;
            let found = here >> shape.width & ((1 << POINT_BITS) - 1);
            (found == u128::from(point)).then_some((at, here & shape.max()))
        })
    }

    /// The packet is seen at `point` (not 0) once more. `is_late` if this entry's first report is
    /// longer ago than a copy takes: then, of several reports, a point that joins is not behind by
    /// those before it joined, whose copies will not come there, and what it sees is reported.
    pub(super) fn see(self, point: u16, is_late: bool) -> Sighting {
        let shape = self.shape();
        match (self.find(shape, point), self.reports()) {
            (Some((_, 0)), _) => Sighting::Fresh(self.report_from(shape, point)),
            (Some((at, _)), _) => Sighting::Duplicate(Self(self.0 - (1 << at))),
            (None, None) => Sighting::Overflow,
            (None, Some(2..)) if is_late => {
                let joined = self.join(shape, point, 0);
                Sighting::Fresh(joined.report_from(joined.shape(), point))
            }
            // Never seen here: this is its first copy of `reports` so far, at least one.
            (None, Some(reports)) => {
                Sighting::Duplicate(self.join(shape, point, reports.saturating_sub(1)))
            }
        }
    }

    /// Whether this packet, reported so often, may be what a translated copy at `point` is a copy
    /// of: it was reported more often than copies were seen there. If so, with this one.
    pub(super) fn see_copy(self, point: u16, is_late: bool) -> Option<Self> {
        let shape = self.shape();
        match (self.find(shape, point), self.reports()) {
            // More reports than deficits can tell apart: it is a copy, though it seems to be one
            // too many.
            (Some((_, 0)), Some(reports)) => {
                (shape.count > EXACT_PLACES && reports == shape.max()).then_some(self)
            }
            (Some((_, 0)), None) => None,
            (Some((at, _)), _) => Some(Self(self.0 - (1 << at))),
            // No copy is to be reported for lack of places.
            (None, None) => Some(self),
            (None, Some(_)) if is_late => Some(self.join(shape, point, 0)),
            (None, Some(reports)) => Some(self.join(shape, point, reports.saturating_sub(1))),
        }
    }

    fn report_from(self, shape: Shape, point: u16) -> Self {
        let mut next = self.0;
        if self.reports().is_some_and(|reports| reports < shape.max()) {
            next += 1;
        }
        for at in (0..shape.count).map(|index| shape.at(index)) {
            let here = self.0 >> at;
            let is_other = here >> shape.width & ((1 << POINT_BITS) - 1) != u128::from(point);
            if is_other && here & shape.max() < shape.max() {
                next += 1 << at;
            }
        }
        Self(next)
    }

    /// With one more place; the deficits are cut to its width.
    fn join(self, old: Shape, point: u16, deficit: u128) -> Self {
        let new = Shape::of(old.count + 1);
        let place = |index: u32, point: u128, deficit: u128| {
            (point << new.width | deficit.min(new.max())) << new.at(index)
        };
        let added = place(old.count, u128::from(point), deficit);
        if old.width == new.width {
            return Self((self.0 + (1 << BODY_BITS)) | added);
        }
        let mut next = (self.0 >> BODY_BITS) + 1;
        next <<= BODY_BITS;
        if new.has_reports {
            next |= self.reports().unwrap_or_default().min(new.max());
        }
        for index in 0..old.count {
            let here = self.0 >> old.at(index);
            let point = here >> old.width & ((1 << POINT_BITS) - 1);
            next |= place(index, point, here & old.max());
        }
        Self(next | added)
    }
}
