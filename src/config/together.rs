//! Settings of different sections that must fit each other.

use super::Config;
use crate::batch;
use crate::setting::Invalid;

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
        Ok(())
    }

    /// The side of the views that the encoder learns from.
    pub fn view_side_px(&self) -> usize {
        self.augment.side_px.unwrap_or(self.input.side_px)
    }

    /// An encoder with positions of a grid takes images of one side.
    pub(super) fn validate_input_of_encoder(&self) -> Result<(), Invalid> {
        let architecture = self.encoder.architecture;
        let Some(only) = architecture.only_side_px() else { return Ok(()) };
        let sides =
            [("input.side_px", self.input.side_px), ("augment.side_px", self.view_side_px())];
        match sides.into_iter().find(|(_, side_px)| *side_px != only) {
            Some((key, side_px)) => {
                let allowed = format!("{only} with encoder.architecture {architecture}");
                Err(Invalid::new(key, side_px, allowed))
            }
            None => Ok(()),
        }
    }
}
