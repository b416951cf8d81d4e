"""What it cost: requests, attempts, outcomes and what left the house."""
