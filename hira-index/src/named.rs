//! Choices in configuration files, by their name alone or with their settings: `"k_means"` is `{ k_means = {} }`.

use std::marker::PhantomData;

use serde::de::value::{
    EnumAccessDeserializer, MapAccessDeserializer, MapDeserializer, StrDeserializer,
};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, VariantAccess, Visitor,
};

/// `Deserialize` for an enum by its name, or by the full form that `$form` derives with `#[serde(remote = ..)]`.
macro_rules! by_name {
    ($choice:ty, $form:ty, $expecting:literal) => {
        impl<'de> serde::Deserialize<'de> for $choice {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::named::read::<Self, D>(deserializer)
            }
        }

        impl $crate::named::Choice for $choice {
            const EXPECTING: &'static str = $expecting;

            fn full<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$form>::deserialize(deserializer)
            }
        }
    };
}
pub(crate) use by_name;

/// An enum whose variants hold nothing, or settings that all have defaults.
pub(crate) trait Choice: Sized {
    const EXPECTING: &'static str;

    /// Reads the form with settings.
    fn full<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

pub(crate) fn read<'de, C: Choice, D: Deserializer<'de>>(deserializer: D) -> Result<C, D::Error> {
    deserializer.deserialize_any(Form(PhantomData))
}

struct Form<C>(PhantomData<C>);

impl<'de, C: Choice> Visitor<'de> for Form<C> {
    type Value = C;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(C::EXPECTING)
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<C, E> {
        C::full(EnumAccessDeserializer::new(Name(name, PhantomData)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<C, A::Error> {
        C::full(MapAccessDeserializer::new(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, choice: A) -> Result<C, A::Error> {
        C::full(EnumAccessDeserializer::new(choice))
    }
}

/// A variant with all its defaults.
struct Name<'a, E>(&'a str, PhantomData<E>);

impl<'de, E: de::Error> EnumAccess<'de> for Name<'_, E> {
    type Error = E;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), E> {
        let name = seed.deserialize(StrDeserializer::new(self.0))?;
        Ok((name, self))
    }
}

impl<'de, E: de::Error> VariantAccess<'de> for Name<'_, E> {
    type Error = E;

    fn unit_variant(self) -> Result<(), E> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, E> {
        seed.deserialize(MapDeserializer::new(no_settings()))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, E> {
        Err(E::custom("a name alone has no settings"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, E> {
        visitor.visit_map(MapDeserializer::new(no_settings()))
    }
}

fn no_settings() -> std::iter::Empty<(&'static str, u32)> {
    std::iter::empty()
}
