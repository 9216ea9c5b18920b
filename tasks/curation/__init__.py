"""Choosing in-context examples by what models say of them: the room that they take, and their reward."""
