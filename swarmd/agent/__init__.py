"""What every node does: runs attempts, keeps their logs, holds blobs."""
