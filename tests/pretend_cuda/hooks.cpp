// Tells torch's core that CUDA is there, so that autograd, autocast and `.to("cuda")` go their usual ways.
#include <cstdlib>

#include <ATen/detail/CUDAHooksInterface.h>

struct CUDAHooks : public at::CUDAHooksInterface {
  CUDAHooks(at::CUDAHooksArgs) {}
  static c10::DeviceIndex count() {
    const char* text = std::getenv("PRETEND_CUDA_DEVICES");
    return static_cast<c10::DeviceIndex>(text == nullptr ? 1 : std::atoi(text));
  }
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return count(); }
  int getNumGPUs() const override { return count(); }
  bool isPinnedPtr(const void*) const override { return false; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)
