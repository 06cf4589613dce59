"""Environments: MaMuJoCo in MJX, and how a robot is split among agents."""
