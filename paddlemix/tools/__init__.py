# SPDX-License-Identifier: Apache-2.0
"""Commands: each parses its arguments, calls one function of the library and exits.

The list with their options is in README.md beside this file.
"""
