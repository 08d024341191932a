"""A member's place in a file that is there -> another checkpoint in that place, proven, without a new export."""
