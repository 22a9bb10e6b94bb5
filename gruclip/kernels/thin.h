// What thin.cpp has for other files.
#pragma once

extern "C" {

void gruclip_there_and_back(float* image, float* back, const float* matrix, const float* columns, long m, long n,
                            long width, long down, int threads);

}  // extern "C"
