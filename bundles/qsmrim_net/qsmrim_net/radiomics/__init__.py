"""The 527 radiomic features of a lesion: pyradiomics's, for all lesions of a subject at once."""
