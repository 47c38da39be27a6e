"""T1 and T2 mapping with recurrent inference machines (Sabidussi et al., Med. Image Anal. 2021)."""
