"""Learning from preferences: what alignment minimises, how models are asked, rollouts, rewards and advantages."""
