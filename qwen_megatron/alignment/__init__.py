"""Learning from preferences: rollouts, rewards, advantages and the losses of PPO."""
