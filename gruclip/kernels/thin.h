// What thin.cpp has for other files.
#pragma once

// As gruclip_there_and_back; where not `exactly`, in sums of any number of terms.
[[gnu::visibility("hidden")]] void there_and_back(float* image, float* back, const float* matrix, const float* columns,
                                                  long m, long n, long width, long down, bool exactly, int threads);
