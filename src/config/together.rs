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

    /// An encoder with positions of a grid takes images of one side.
    pub(super) fn validate_input_of_encoder(&self) -> Result<(), Invalid> {
        let Config { encoder, input, .. } = self;
        match encoder.architecture.only_side_px() {
            Some(side_px) if side_px != input.side_px => {
                let allowed =
                    format!("{side_px} with encoder.architecture {}", encoder.architecture);
                Err(Invalid::new("input.side_px", input.side_px, allowed))
            }
            _ => Ok(()),
        }
    }
}
