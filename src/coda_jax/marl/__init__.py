"""Multi-agent learners: the offline protocol with MADDPG+BC, and MATD3 for the behaviour teams."""
