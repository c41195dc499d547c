// A state whose every byte follows from a number, for tests that ask which snapshot they have found.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "torchsnapshot/snapshot.h"

namespace torchsnapshot {

/// Tensors of the given numbers of floats, a number and an object.
struct NumberedState {
  std::vector<std::vector<float>> tensors;
  AppState app;

  explicit NumberedState(int number, std::initializer_list<std::size_t> sizes = {40'000, 20'000, 10, 3}) {
    Dict dict;
    for (const std::size_t size : sizes) {
      tensors.emplace_back(size);
      for (std::size_t i = 0; i < size; ++i)
        tensors.back()[i] = static_cast<float>(static_cast<int>(i % 1000) + number);
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      dict.items.emplace_back(
          "t" + std::to_string(i),
          TensorView::dense(tensors[i].data(), DType::kFloat32, {static_cast<std::int64_t>(tensors[i].size())}));
    }
    dict.items.emplace_back("number", Integer(number));
    dict.items.emplace_back("object", Opaque{.serializer = "torch_save",
                                             .type_name = "builtins.tuple",
                                             .bytes = SharedBytes::copy_of("pickled" + std::to_string(number))});
    app.emplace_back("state", std::move(dict));
  }

  /// The number that a restore into `app` brought. Fails the test unless every part tells the same.
  [[nodiscard]] int restored_number() const {
    const auto* dict = app[0].second.get_if<Dict>();
    const int number = std::stoi(dict->find("number")->get_if<Integer>()->decimal);
    for (const std::vector<float>& tensor : tensors) {
      for (std::size_t i = 0; i < tensor.size(); ++i) {
        if (tensor[i] != static_cast<float>(static_cast<int>(i % 1000) + number)) {
          ADD_FAILURE() << "element " << i << " is " << tensor[i] << " in the state " << number;
          return number;
        }
      }
    }
    EXPECT_EQ(dict->find("object")->get_if<Opaque>()->bytes.view(), "pickled" + std::to_string(number));
    return number;
  }
};

}  // namespace torchsnapshot
