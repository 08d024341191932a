"""What a file carries about how its weights were made, so that a member can be taken out of it or put into it."""
