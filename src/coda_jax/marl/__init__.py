"""Multi-agent learners: MADDPG+BC, IDDPG+BC and MADDPG+CQL by one offline protocol, MATD3 for the behaviour teams."""
