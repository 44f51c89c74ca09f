//! What is done to the hosts that answer, one fault after another.

use super::Pair;
use super::pair::ANSWERERS;
use rand::Rng;
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::sleep;

/// The model of the bundled test engine.
pub const BENCH: &str = "bench";

/// How long a fault lasts that ends by itself.
const LASTS: Duration = Duration::from_secs(3);

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The agent is killed and started again.
    Kill,
    /// Every process of the host stops for [`LASTS`].
    Freeze,
    /// Its cable is cut for [`LASTS`].
    Cut,
    /// The agent is asked to leave, and started again once it has.
    Leave,
    /// The engine stops for [`LASTS`]; its agent lives.
    HangEngine,
    /// The engine is killed and started again.
    KillEngine,
}

const FAULTS: [Fault; 6] = [
    Fault::Kill,
    Fault::Freeze,
    Fault::Cut,
    Fault::Leave,
    Fault::HangEngine,
    Fault::KillEngine,
];

impl Fault {
    /// Some fault, and the host that it happens to.
    pub fn draw(random: &mut impl Rng) -> (Self, usize) {
        let fault = FAULTS[random.random_range(0..FAULTS.len())];
        (fault, ANSWERERS[random.random_range(0..ANSWERERS.len())])
    }

    /// Does it to `host`, and undoes it.
    ///
    /// # Panics
    /// If an agent that was asked to leave ends with an error, or one does not start.
    pub async fn strike(self, pair: &mut Pair, host: usize) {
        match self {
            Fault::Kill => {
                pair.cluster.agents[host].kill().await;
                pair.cluster.agents[host].start().await;
            }
            Fault::Freeze => {
                pair.lab.freeze(host);
                sleep(LASTS).await;
                pair.lab.thaw(host);
            }
            Fault::Cut => {
                pair.lab.cut(host);
                sleep(LASTS).await;
                pair.lab.mend(host);
            }
            Fault::Leave => {
                let agent = &mut pair.cluster.agents[host];
                let status = agent.terminate().await;
                assert!(status.success(), "{status}: {}", agent.log());
                agent.start().await;
            }
            Fault::HangEngine => {
                pair.engine(host).signal(Signal::STOP);
                sleep(LASTS).await;
                pair.engine(host).signal(Signal::CONT);
            }
            Fault::KillEngine => {
                pair.engine(host).kill().await;
                pair.engine(host).again().await;
            }
        }
    }
}
