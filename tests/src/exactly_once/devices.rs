//! Rows 20, 22, 26, 30: stacked devices, other uplinks, and the tap's own packets.

use super::{Ground, rows::port};
use crate::{
    lab::LabError,
    traffic::{Http, Serve, Server},
};

pub(super) fn overlay(_ground: &Ground<'_>) -> Result<(), LabError> {
    Ok(())
}

/// Row 22: whatever a pod sends makes the taps send.
pub(super) fn beside_own_traffic(ground: &Ground<'_>) -> Result<(), LabError> {
    let _http = Server::start(ground.far(), Serve::Http, port(22))?;
    Http::new(ground.far().socket(port(22)), ground.size.requests, 8).run_on(ground.client())?;
    Ok(())
}

pub(super) fn branch_and_trunk(_ground: &Ground<'_>) -> Result<(), LabError> {
    Ok(())
}

pub(super) fn secondary_uplink(_ground: &Ground<'_>) -> Result<(), LabError> {
    Ok(())
}
