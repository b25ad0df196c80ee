"""The report of runs: what it holds, gathered from their folders and images, and the one file of HTML that shows it."""
