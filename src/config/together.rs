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

    /// A response needs what it responds to.
    pub(super) fn validate_on_drift(&self) -> Result<(), Invalid> {
        let on_drift = &self.learner.on_drift;
        if self.drift.enabled {
            return Ok(());
        }
        if on_drift.rate_factor != 1.0 {
            let key = "learner.on_drift.rate_factor";
            return Err(Invalid::new(key, on_drift.rate_factor, "1 without drift.enabled"));
        }
        if on_drift.warm_up {
            return Err(Invalid::new(
                "learner.on_drift.warm_up",
                true,
                "false without drift.enabled",
            ));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each by the name of its key.
    #[test]
    fn what_hangs_on_time_is_refused_where_equal_streams_are_to_give_equal_weights() {
        let base = "run.deterministic = true\nbatch.pace = \"fixed\"\ndrift.enabled = true";
        Config::parse(base).unwrap();
        for (key, value) in [
            ("learner.schedule.end_after", "\"60s\""),
            ("kafka.lag_target_records", "1000"),
            ("learner.on_drift.rate_factor", "2.0"),
            ("learner.on_drift.warm_up", "true"),
        ] {
            let error = Config::parse(&format!("{base}\n{key} = {value}")).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
        let error = Config::parse("run.deterministic = true").unwrap_err();
        assert!(error.to_string().contains("batch.pace"), "{error}");
    }
    #[test]
    fn a_response_to_drift_is_refused_where_drift_is_not_told() {
        for (key, value) in
            [("learner.on_drift.rate_factor", "2.0"), ("learner.on_drift.warm_up", "true")]
        {
            let text = format!("{key} = {value}");
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("drift.enabled"), "{error}");
            Config::parse(&format!("{text}\ndrift.enabled = true")).unwrap();
        }
    }

    /// What chose a side that the encoder does not take is named, with or without a ceiling of memory.
    #[test]
    fn a_side_that_the_encoder_does_not_take_is_refused_by_the_key_that_chose_it() {
        let patches = "encoder.architecture = \"vit-tiny-patch32\"\n";
        for (text, named) in [
            ("input.side_px = 32", "augment.side_share = unset"),
            ("input.side_px = 64\naugment.side_share = 0.4", "augment.side_share = 0.4"),
            ("input.side_px = 24\naugment.side_share = 1.0", "input.side_px = 24"),
            (
                "input.side_px = 64\nobjective.kind = \"emp\"\nobjective.crop_side_px = 16",
                "objective.crop_side_px = 16",
            ),
        ] {
            let error = Config::parse(&format!("{patches}{text}")).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("vit-tiny-patch32"), "{error}");
        }
        Config::parse(&format!("{patches}input.side_px = 64")).unwrap();
    }
}
