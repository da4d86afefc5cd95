"""What only the leader does: each loop is a pure plan with a small loop around it."""
