//! The drops that the kernel can take, as classic BPF.
