//! Settings of different sections that must fit each other.

use super::Config;
use crate::batch;
use crate::setting::Invalid;

/// What docs/LEARNING.md found best for encoders that take images of any side.
const USUAL_SIDE_SHARE: f32 = 0.5;
/// A guess: fewer pixels show nothing.
const LEAST_VIEW_PX: usize = 8;

impl Config {
    /// Nothing may hang on time where equal streams are to give equal weights.
    pub(super) fn validate_deterministic(&self) -> Result<(), Invalid> {
        if !self.run.deterministic {
            return Ok(());
        }
        if self.batch.pace != batch::Pace::Fixed {
            return Err(Invalid::new("batch.pace", "fill", "\"fixed\" with run.deterministic"));
        }
        if let Some(end) = self.learner.schedule.end_after {
            let allowed = "unset with run.deterministic: learner.schedule.end_steps is not";
            return Err(Invalid::new("learner.schedule.end_after", format!("{end:?}"), allowed));
        }
        if let Some(lag) = self.kafka.lag_target_records {
            let allowed = "unset with run.deterministic";
            return Err(Invalid::new("kafka.lag_target_records", lag, allowed));
        }
        let on_drift = &self.learner.on_drift;
        if on_drift.rate_factor != 1.0 {
            let key = "learner.on_drift.rate_factor";
            return Err(Invalid::new(key, on_drift.rate_factor, "1 with run.deterministic"));
        }
        if on_drift.warm_up {
            let key = "learner.on_drift.warm_up";
            return Err(Invalid::new(key, true, "false with run.deterministic"));
        }
        Ok(())
    }

    /// The side of the views that the encoder learns from, at least 8 px.
    pub fn view_side_px(&self) -> usize {
        let input_px = self.input.side_px;
        let is_of_one_side = self.encoder.architecture.only_side_px().is_some();
        let usual = if is_of_one_side { 1.0 } else { USUAL_SIDE_SHARE };
        let side_px = input_px as f32 * self.augment.side_share.unwrap_or(usual);
        (side_px.round() as usize).clamp(LEAST_VIEW_PX.min(input_px), input_px)
    }

    /// An objective that chooses the side of views chooses one that the encoder takes.
    pub(super) fn validate_views_of_objective(&self) -> Result<(), Invalid> {
        let Some((key, side)) = self.objective.own_side() else { return Ok(()) };
        let (view_px, architecture) = (self.view_side_px(), self.encoder.architecture);
        let side_px = side.px(view_px);
        match architecture.only_side_px() {
            Some(only_px) if only_px != side_px => {
                let allowed = format!(
                    "{only_px}, or no such views, with encoder.architecture {architecture}"
                );
                Err(Invalid::new(key, side_px, allowed))
            }
            _ => Ok(()),
        }
    }

    /// An encoder with positions of a grid takes images of one side.
    pub(super) fn validate_input_of_encoder(&self) -> Result<(), Invalid> {
        let architecture = self.encoder.architecture;
        let Some(only) = architecture.only_side_px() else { return Ok(()) };
        let side_px = self.input.side_px;
        if side_px != only {
            let allowed = format!("{only} with encoder.architecture {architecture}");
            return Err(Invalid::new("input.side_px", side_px, allowed));
        }
        match self.augment.side_share {
            Some(share) if self.view_side_px() != only => {
                let allowed = format!("unset or 1 with encoder.architecture {architecture}");
                Err(Invalid::new("augment.side_share", share, allowed))
            }
            _ => Ok(()),
        }
    }
}
