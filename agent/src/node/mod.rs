//! Puts the agent together and owns every task (being written).

#[cfg(test)]
pub(crate) mod test_support;
