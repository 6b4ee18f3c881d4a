"""`python -m canvit_gym.play`: the same as `canvit-gym play`."""

from canvit_gym.play.command import command_line

if __name__ == "__main__":
    command_line()
