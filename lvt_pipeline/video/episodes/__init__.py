"""Recordings that hold numbers next to their pictures: records of BAIR and RLDS, LeRobot folders, files of rows."""
